/*
 * Interrupts for guests that take some: local APIC in x2APIC mode, an interrupt descriptor table with one
 * handler, and a way to start the other processors.
 */
#define MSR_APIC_BASE 0x1b
#define MSR_EFER 0xc0000080
#define VECTOR 0x41
#define SPURIOUS 0xff
/* SIPI vector 0x10: the trampoline goes to 0x10000. */
#define TRAMPOLINE 0x10000
#define CODE64 0x10

/* Turns this processor's local APIC on, in x2APIC mode. */
#define APIC_ON mov ecx, MSR_APIC_BASE; rdmsr; or eax, 0xc00; wrmsr; WRMSR(X2APIC_SVR, 0, 0x100 | SPURIOUS)
#define END_OF_INTERRUPT WRMSR(X2APIC_EOI, 0, 0)
/* Register `index` of the I/O APIC becomes `value`. */
#define IOAPIC_SET(index, value) mov r11d, IOAPIC; mov dword ptr [r11], index; mov dword ptr [r11 + 0x10], value

.macro APIC_ROUTINES
/* The gate of vector edi leads to rsi. */
set_gate:
    shl edi, 4
    lea r11, [rip + idt]
    add r11, rdi
    mov [r11], si
    mov word ptr [r11 + 2], CODE64
    mov word ptr [r11 + 4], 0x8e00
    shr rsi, 16
    mov [r11 + 6], esi
    mov dword ptr [r11 + 10], 0
    ret

/* Starts every other processor; it comes out at ap_start, in long mode, with its APIC id in ebp. */
start_others:
    lea rsi, [rip + trampoline]
    mov edi, TRAMPOLINE
    mov ecx, offset trampoline_end - trampoline
    rep movsb
    /* To all but this one: INIT, then SIPI twice (SDM volume 3, 10.4.4.1). */
    WRMSR(X2APIC_ICR, 0, 0x000c4500)
    WRMSR(X2APIC_ICR, 0, 0x000c4610)
    WRMSR(X2APIC_ICR, 0, 0x000c4610)
    ret

.code16
trampoline:
    cli
    mov ax, cs
    mov ds, ax
    lgdtd [trampoline_gdt_pointer - trampoline]
    mov eax, 0x20           /* PAE */
    mov cr4, eax
    mov eax, 0x9000         /* the page tables that the first processor was given */
    mov cr3, eax
    mov ecx, MSR_EFER
    xor edx, edx
    mov eax, 0x100          /* LME */
    wrmsr
    mov eax, 0x80000011     /* PG, ET, PE */
    mov cr0, eax
    .byte 0x66, 0xea
    .long TRAMPOLINE + trampoline_64 - trampoline
    .word CODE64
.code64
trampoline_64:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    APIC_ON
    mov ecx, X2APIC_ID
    rdmsr
    mov ebp, eax
    /* 4 KiB of stack for each. */
    inc eax
    shl eax, 12
    add rax, offset stacks
    mov rsp, rax
    mov rax, offset ap_start
    jmp rax
.balign 8
trampoline_gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
trampoline_gdt_pointer:
    .word 31
    .long TRAMPOLINE + trampoline_gdt - trampoline
trampoline_end:

.balign 8
idt_pointer:
    .word 0xfff
    .quad idt
.section .bss
.balign 4096
idt:
    .skip 4096
stacks:
    .skip 16 * 4096
.section .text
.endm

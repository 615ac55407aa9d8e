/*
 * What the guests share. A guest is an ELF file for the 64-bit entry point (no PVH note): it starts in
 * long mode with the first 4 GiB mapped to themselves, interrupts off, and a stack below 0x8ff0.
 *
 * It says what it sees on the first serial port and switches itself off; a check that fails says so and
 * switches off as well, so the text decides. Ring 0 of a KVM without hardware virtualization is emulated
 * at about 2 million instructions a second and knows no SSE arithmetic, no int n and no rdtscp: keep to
 * plain integer instructions.
 *
 * The macros take rax, rcx, rdx, rdi and r11.
 */
.intel_syntax noprefix
.code64
.section .text
.globl _start
#ifndef OWN_START
_start:
#endif

#define COM1 0x3f8
#define SLEEP_CONTROL 0x614
#define IOAPIC 0xfec00000
#define ECAM 0xe0000000
#define PCI_WINDOW 0x80000000

#define X2APIC_ID 0x802
#define X2APIC_EOI 0x80b
#define X2APIC_SVR 0x80f
#define X2APIC_ICR 0x830

#define OUTB(port, value) mov edx, port; mov al, value; out dx, al
#define OUTW(port, value) mov edx, port; mov ax, value; out dx, ax
#define OUTL(port, value) mov edx, port; mov eax, value; out dx, eax
#define INB(port) xor eax, eax; mov edx, port; in al, dx
#define INW(port) xor eax, eax; mov edx, port; in ax, dx
#define INL(port) mov edx, port; in eax, dx

/* rax must be this. */
#define EXPECT(value) mov rcx, value; mov edi, __LINE__; call expect

#define SAY(text) lea rdi, [rip + 7f]; call say; jmp 8f; 7: .asciz text; 8:

#define WRMSR(msr, high, low) mov ecx, msr; mov edx, high; mov eax, low; wrmsr
/* Spins until the dword at `what` is `value`; the host's watchdog ends a wait that never does. */
#define WAIT_FOR(what, value) 9: cmp dword ptr [what], value; pause; jne 9b

.macro ROUTINES
/* The text at rdi, up to its 0. */
say:
    mov edx, COM1
1:  mov al, [rdi]
    test al, al
    jz 2f
    out dx, al
    inc rdi
    jmp 1b
2:  ret

/* rdi as 16 hexadecimal digits. */
say_number:
    mov ecx, 16
    mov edx, COM1
1:  rol rdi, 4
    mov eax, edi
    and eax, 15
    lea r11, [rip + digits]
    mov al, [r11 + rax]
    out dx, al
    dec ecx
    jnz 1b
    ret
digits: .ascii "0123456789abcdef"

/* Ends with a message if rax is not rcx; rdi is the line of the source. */
expect:
    cmp rax, rcx
    jne 1f
    ret
1:  mov r12, rax
    mov r13, rcx
    mov r14, rdi
    SAY("failed at line 0x")
    mov rdi, r14
    call say_number
    SAY(": has 0x")
    mov rdi, r12
    call say_number
    SAY(", wants 0x")
    mov rdi, r13
    call say_number
    SAY("\n")
    jmp power_off

/* By the sleep control register of hardware-reduced ACPI. */
power_off:
    OUTB(SLEEP_CONTROL, 0x20)
halt:
    hlt
    jmp halt
.endm

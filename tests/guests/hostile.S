/*
 * Writes and reads every port, every memory-mapped register page and all of PCI configuration space, with
 * every width and random values, and then must still be there to say so. The first processor takes the
 * ports and the I/O APIC, the second one PCI.
 *
 * Left out, as they do what they say: the bits that reset or switch off (see `ports`). The local APIC's
 * page is the kernel's.
 */
#include "guest.h"
#include "apic.h"
#define ROUNDS 200

/* The next number of a xorshift generator (13, 7, 17) in rbx; each processor has its own. */
#define RANDOM mov rax, rbx; shl rax, 13; xor rbx, rax; mov rax, rbx; shr rax, 7; xor rbx, rax; \
    mov rax, rbx; shl rax, 17; xor rbx, rax

    mov rbx, 0x9e3779b97f4a7c15
    APIC_ON
    call start_others
    WAIT_FOR(started, 1)
    SAY("hostile\n")

    /* Every port once, and those of devices many times over. */
    xor esi, esi
    mov edi, 0x10000
    call ports
    mov r14d, ROUNDS
1:  lea r15, [rip + device_ports]
2:  movzx esi, word ptr [r15]
    movzx edi, word ptr [r15 + 2]
    call ports
    add r15, 4
    lea rax, [rip + device_ports_end]
    cmp r15, rax
    jb 2b
    dec r14d
    jnz 1b
    call ioapic
    WAIT_FOR(finished, 1)

    /* The serial port as it was: no interrupts, 8 bits, FIFO empty, no loop. */
    OUTB(COM1 + 3, 0x03)
    OUTB(COM1 + 1, 0x00)
    OUTB(COM1 + 2, 0x07)
    OUTB(COM1 + 4, 0x00)
    SAY("\nsurvived\n")
    jmp power_off

/* Ports esi to edi: writes of each width, then reads. */
ports:
    RANDOM
    mov edx, esi
    cmp esi, 0x64
    je 1f
    cmp esi, 0x92
    je 2f
    cmp esi, SLEEP_CONTROL
    je 3f
    cmp esi, 0xcf9
    je 4f
    mov eax, ebx
    jmp 5f
1:  mov eax, ebx
    and al, 0x7f        /* not 0xfe, the reset command */
    jmp 5f
2:  mov eax, ebx
    and al, 0xfe        /* not the reset bit */
    jmp 5f
3:  mov eax, ebx
    and al, 0xdf        /* not SLP_EN */
    jmp 5f
4:  mov eax, ebx
    and al, 0xfb        /* not the reset bit */
5:  out dx, al
    mov rax, rbx
    shr rax, 16
    cmp esi, 0x604
    jne 6f
    and ah, 0xdf        /* not SLP_EN */
6:  out dx, ax
    mov rax, rbx
    shr rax, 32
    out dx, eax
    in al, dx
    in ax, dx
    in eax, dx
    inc esi
    cmp esi, edi
    jb ports
    ret

device_ports:
    .word 0x60, 0x65, 0x70, 0x72, 0x92, 0x93, COM1, COM1 + 8, 0x600, 0x620, 0xcf8, 0xd00
device_ports_end:

/* Each byte of the page with each width, and each index with many values. */
ioapic:
    mov esi, IOAPIC
    mov edi, 0x1000
    call memory
    xor esi, esi
    mov edi, IOAPIC
1:  RANDOM
    mov eax, esi
    and eax, 0xff
    mov [rdi], eax
    mov [rdi + 0x10], ebx
    mov eax, [rdi + 0x10]
    inc esi
    cmp esi, 256 * 16
    jb 1b
    /* Mask every pin again, or the serial port sends what was made up here. */
    mov esi, 0x10
2:  mov [rdi], esi
    mov dword ptr [rdi + 0x10], 0x10000
    add esi, 2
    cmp esi, 0x40
    jb 2b
    ret

/* edi bytes from esi on, at each address a write and a read of 1, 2, 4 and 8 bytes. */
memory:
    add edi, esi
1:  RANDOM
    mov [rsi], bl
    mov [rsi], bx
    RANDOM
    mov [rsi], ebx
    mov [rsi], rbx
    mov al, [rsi]
    mov ax, [rsi]
    mov eax, [rsi]
    mov rax, [rsi]
    inc esi
    cmp esi, edi
    jb 1b
    ret

ap_start:
    mov rbx, 0xd1b54a32d192ed03
    cld
    lock inc dword ptr [rip + started]
    /* The two functions that there are. */
    mov esi, ECAM
    mov edi, 0x1000
    call memory
    mov esi, ECAM + 0xf8000
    mov edi, 0x1000
    call memory
    /* Bus 0, register by register; a new value for each function. */
    mov edi, ECAM
1:  RANDOM
    mov ecx, 0x400
    rep stosd
    cmp edi, ECAM + 0x100000
    jb 1b
    /* All other buses: each function once, at a random register. */
2:  RANDOM
    mov eax, ebx
    and eax, 0xffc
    mov [rdi + rax], rbx
    mov [rdi + rax], ebx
    mov eax, [rdi + rax]
    add edi, 0x1000
    cmp edi, ECAM + 0x10000000
    jb 2b
    /* The window of the memory BARs, wherever they are now. */
    mov esi, PCI_WINDOW
3:  RANDOM
    mov [rsi], bl
    mov [rsi + 2], bx
    mov [rsi + 4], ebx
    mov [rsi + 8], rbx
    mov rax, [rsi]
    mov eax, ebx
    and eax, 0x3ffff
    add esi, eax
    cmp esi, ECAM
    jb 3b
    lock inc dword ptr [rip + finished]
    jmp halt
ROUTINES
APIC_ROUTINES
.section .bss
started: .long 0
finished: .long 0

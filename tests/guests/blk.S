/*
 * A driver for the virtio block device in slot 1: prints the first 16 bytes of its sector 2, read by one
 * request whose interrupt must arrive at the local APIC; interrupts stay off, so it waits there to be seen.
 */
#include "guest.h"
#define CONFIG(offset) OUTL(0xcf8, 0x80000800 + offset); INL(0xcfc)
#define VECTOR 0x41
#define COMMON 0
#define X2APIC_IRR 0x820
#define NOTIFY 0x3000
#define TABLE 0x4000

    CONFIG(0)
    EXPECT(0x10421af4)
    CONFIG(0x10)
    and eax, ~0xf
    mov ebx, eax

    /* Local APIC on, in x2APIC mode. */
    mov ecx, 0x1b
    rdmsr
    or eax, 0xc00
    wrmsr
    WRMSR(X2APIC_SVR, 0, 0x1ff)

    /* MSI-X on: the capability with id 0x11. */
    CONFIG(0x34)
    movzx r8d, al
next_capability:
    lea eax, [r8 + 0x80000800]
    mov edx, 0xcf8
    out dx, eax
    INL(0xcfc)
    cmp al, 0x11
    je found
    movzx eax, ah
    mov r8d, eax
    test r8d, r8d
    jnz next_capability
    SAY("no MSI-X\n")
    jmp power_off
found:
    or eax, 0x80000000
    mov edx, 0xcfc
    out dx, eax
    mov dword ptr [rbx + TABLE], 0xfee00000
    mov dword ptr [rbx + TABLE + 4], 0
    mov dword ptr [rbx + TABLE + 8], VECTOR
    mov dword ptr [rbx + TABLE + 12], 0

    /* Acknowledge, driver, VERSION_1, FEATURES_OK. */
    mov byte ptr [rbx + COMMON + 0x14], 0
    mov byte ptr [rbx + COMMON + 0x14], 1
    mov byte ptr [rbx + COMMON + 0x14], 3
    mov dword ptr [rbx + COMMON + 8], 1
    mov dword ptr [rbx + COMMON + 12], 1
    mov byte ptr [rbx + COMMON + 0x14], 11
    xor eax, eax
    mov al, [rbx + COMMON + 0x14]
    EXPECT(11)

    /* Queue 0 with vector 0. */
    mov word ptr [rbx + COMMON + 0x16], 0
    mov word ptr [rbx + COMMON + 0x18], 16
    mov word ptr [rbx + COMMON + 0x1a], 0
    lea rax, [rip + descriptors]
    mov [rbx + COMMON + 0x20], eax
    mov dword ptr [rbx + COMMON + 0x24], 0
    lea rax, [rip + available]
    mov [rbx + COMMON + 0x28], eax
    mov dword ptr [rbx + COMMON + 0x2c], 0
    lea rax, [rip + used]
    mov [rbx + COMMON + 0x30], eax
    mov dword ptr [rbx + COMMON + 0x34], 0
    mov word ptr [rbx + COMMON + 0x1c], 1
    mov byte ptr [rbx + COMMON + 0x14], 15
    xor eax, eax
    mov al, [rbx + COMMON + 0x14]
    EXPECT(15)

    /* Read sector 2. */
    lea rdi, [rip + descriptors]
    lea rax, [rip + request]
    mov [rdi], rax
    lea rax, [rip + sector]
    mov [rdi + 16], rax
    lea rax, [rip + status]
    mov [rdi + 32], rax
    mov word ptr [rip + available + 2], 1
    mov word ptr [rbx + NOTIFY], 0
wait_used:
    pause
    cmp word ptr [rip + used + 2], 1
    jne wait_used
    movzx eax, byte ptr [rip + status]
    EXPECT(0)
    mov eax, [rip + used + 8]
    EXPECT(513)
wait_interrupt:
    mov ecx, X2APIC_IRR + VECTOR / 32
    rdmsr
    test eax, 1 << (VECTOR % 32)
    jz wait_interrupt
    lea rdi, [rip + sector]
    mov byte ptr [rdi + 16], 0
    call say
    SAY("\n")
    jmp power_off
ROUTINES

.section .data
.balign 16
descriptors:
    .quad 0
    .long 16
    .word 1, 1
    .quad 0
    .long 512
    .word 3, 2
    .quad 0
    .long 1
    .word 2, 0
    .skip 16 * 13
request:
    .long 0, 0
    .quad 2
status:
    .byte 0xff
.section .bss
.balign 4096
available:
    .skip 4096
used:
    .skip 4096
sector:
    .skip 512

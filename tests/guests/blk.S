/*
 * A driver for the virtio block device in slot 1: prints the first 16 bytes of its sector 2, read by one
 * request whose interrupt must arrive at the local APIC; interrupts stay off, so it waits there to be seen.
 */
#include "guest.h"
#include "blk.h"
#define X2APIC_IRR 0x820

    START_DISK 16, 0

    /* Read sector 2. */
    lea rdi, [rip + descriptors]
    lea rax, [rip + request]
    mov [rdi], rax
    lea rax, [rip + sector]
    mov [rdi + 16], rax
    lea rax, [rip + status]
    mov [rdi + 32], rax
    mov word ptr [rip + available + 2], 1
    mov word ptr [r15 + NOTIFY], 0
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

/*
 * What the drivers for the virtio block device in slot 1 share. They have the areas `descriptors`, `available`
 * and `used`, and the BAR in r15.
 */
#include "apic.h"
#define CONFIG(offset) OUTL(0xcf8, 0x80000800 + offset); INL(0xcfc)
#define COMMON 0
#define NOTIFY 0x3000
#define TABLE 0x4000

/* Sets the device up to DRIVER_OK, its queue 0 of `size` entries with VECTOR of this processor's local APIC. */
.macro START_DISK size, features
    CONFIG(0)
    EXPECT(0x10421af4)
    CONFIG(0x10)
    and eax, ~0xf
    mov r15d, eax
    APIC_ON

    /* MSI-X on: the capability with id 0x11. Vector 0 is for the queue. */
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
    mov dword ptr [r15 + TABLE], 0xfee00000
    mov dword ptr [r15 + TABLE + 4], 0
    mov dword ptr [r15 + TABLE + 8], VECTOR
    mov dword ptr [r15 + TABLE + 12], 0

    /* Acknowledge, driver, the features with VERSION_1, FEATURES_OK. */
    mov byte ptr [r15 + COMMON + 0x14], 0
    mov byte ptr [r15 + COMMON + 0x14], 1
    mov byte ptr [r15 + COMMON + 0x14], 3
    mov dword ptr [r15 + COMMON + 8], 0
    mov dword ptr [r15 + COMMON + 12], \features
    mov dword ptr [r15 + COMMON + 8], 1
    mov dword ptr [r15 + COMMON + 12], 1
    mov byte ptr [r15 + COMMON + 0x14], 11
    xor eax, eax
    mov al, [r15 + COMMON + 0x14]
    EXPECT(11)

    mov word ptr [r15 + COMMON + 0x16], 0
    mov word ptr [r15 + COMMON + 0x18], \size
    mov word ptr [r15 + COMMON + 0x1a], 0
    mov dword ptr [r15 + COMMON + 0x20], offset descriptors
    mov dword ptr [r15 + COMMON + 0x24], 0
    mov dword ptr [r15 + COMMON + 0x28], offset available
    mov dword ptr [r15 + COMMON + 0x2c], 0
    mov dword ptr [r15 + COMMON + 0x30], offset used
    mov dword ptr [r15 + COMMON + 0x34], 0
    mov word ptr [r15 + COMMON + 0x1c], 1
    mov byte ptr [r15 + COMMON + 0x14], 15
    xor eax, eax
    mov al, [r15 + COMMON + 0x14]
    EXPECT(15)
.endm

/* Memory accesses of every width where a device is, and where none is. */
#include "guest.h"
    cld
    mov ebx, ECAM
    /* Reads of 1, 2 and 4 bytes: host bridge 8086:29c0, zero-extended as the processor says. */
    mov eax, [rbx]
    EXPECT(0x29c08086)
    movzx eax, word ptr [rbx + 2]
    EXPECT(0x29c0)
    movzx eax, byte ptr [rbx + 3]
    EXPECT(0x29)
    movsx rax, byte ptr [rbx]
    EXPECT(0xffffffffffffff86)

    /* Writes of 1, 2 and 4 bytes, to the PCIEXBAR and the RCBA. */
    mov dword ptr [rbx + 0x60], 0xe0000001
    mov eax, [rbx + 0x60]
    EXPECT(0xe0000001)
    mov byte ptr [rbx + 0x64], 0x05
    movzx eax, byte ptr [rbx + 0x64]
    EXPECT(0x05)
    mov eax, [rbx + 0x60]
    EXPECT(0xe0000001)
    mov esi, ECAM + 0xf8000
    mov word ptr [rsi + 0xf2], 0xfed1
    mov eax, [rsi + 0xf0]
    EXPECT(0xfed10000)
    mov eax, 0x4001
    mov [rsi + 0xf0], ax
    mov eax, [rsi + 0xf0]
    EXPECT(0xfed14001)

    /* Configuration registers have 4 bytes: 8 at once are none, and change nothing. */
    mov rax, [rbx]
    EXPECT(-1)
    mov rax, 0x1111111122222222
    mov [rbx + 0x60], rax
    mov eax, [rbx + 0x60]
    EXPECT(0xe0000001)

    /* The I/O APIC: index and window. */
    mov ebx, IOAPIC
    mov dword ptr [rbx], 1
    mov eax, [rbx + 0x10]
    EXPECT(0x170020)
    mov dword ptr [rbx], 0x2e
    mov dword ptr [rbx + 0x10], 0x10041
    mov eax, [rbx + 0x10]
    EXPECT(0x10041)
    /* Only whole registers. */
    movzx eax, byte ptr [rbx + 0x10]
    EXPECT(0xff)
    mov byte ptr [rbx + 0x10], 0
    mov eax, [rbx + 0x10]
    EXPECT(0x10041)

    /* Where nothing answers: all ones at every width. */
    mov ebx, PCI_WINDOW
    movzx eax, byte ptr [rbx]
    EXPECT(0xff)
    movzx eax, word ptr [rbx + 2]
    EXPECT(0xffff)
    mov eax, [rbx + 4]
    EXPECT(0xffffffff)
    mov rax, [rbx + 8]
    EXPECT(-1)
    mov qword ptr [rbx + 8], 0
    mov rax, [rbx + 8]
    EXPECT(-1)
    /* Unaligned and across a page. */
    mov rax, [rbx + 0xffd]
    EXPECT(-1)

    /* A function that is not there. */
    mov eax, [ECAM + 0x8000 + 0xf00000]
    EXPECT(0xffffffff)

    /* Read and write at once, and string instructions from device to memory and to a device. */
    mov ebx, ECAM
    mov al, 0x03
    xchg [rbx + 0x64], al
    movzx eax, al
    EXPECT(0x05)
    or byte ptr [rbx + 0x64], 0x08
    movzx eax, byte ptr [rbx + 0x64]
    EXPECT(0x0b)
    mov esi, ECAM
    lea rdi, [rip + buffer]
    mov ecx, 3
    rep movsd
    mov eax, [rip + buffer]
    EXPECT(0x29c08086)
    mov eax, [rip + buffer + 8]
    EXPECT(0x06000000)
    mov edi, IOAPIC
    mov eax, 1
    stosd
    mov eax, [IOAPIC]
    EXPECT(1)

    SAY("mmio\n")
    jmp power_off
ROUTINES
.section .bss
buffer:
    .skip 64

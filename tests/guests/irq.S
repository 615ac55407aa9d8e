/*
 * Interrupts of the serial port through pin 4 of the I/O APIC: "transmitter empty" after each byte. The
 * pin's redirection entry becomes a message that KVM delivers by irqfd; TARGET is the APIC id it names.
 * A handler counts all, and those that have a cause; between the bytes the processor halts.
 *
 * An edge that comes while the pin is masked is lost, but not for sure: KVM gives it to a worker, which
 * may come so late that it finds the route of the unmasked pin (irqfd_inject). So one interrupt more is
 * allowed, whenever it comes. It may take the cause of a byte, so that the byte's own finds none. A mask
 * that does not work gives four more at the end.
 */
#include "guest.h"
#include "apic.h"
#define BYTES 50
    APIC_ON
    mov edi, VECTOR
    lea rsi, [rip + on_serial]
    call set_gate
    mov edi, SPURIOUS
    lea rsi, [rip + on_spurious]
    call set_gate
    lidt [rip + idt_pointer]
#if TARGET != 0
    call start_others
    WAIT_FOR(started, 1)
#endif
    /* Pin 4: entry 0x18 and 0x19. Masked: an interrupt now is lost. */
    IOAPIC_SET(0x19, TARGET << 24)
    IOAPIC_SET(0x18, 0x10000 | VECTOR)
    OUTB(COM1 + 1, 0x02)
    OUTB(COM1 + 4, 0x08)
    sti
    OUTB(COM1, '.')
    mov ecx, 2000
1:  dec ecx
    jnz 1b
    mov eax, [rip + count]
    EXPECT(0)
    /* The port's line stays up until its cause has been read, and there is no edge before. */
    INB(COM1 + 2)
    and eax, 0x0f
    EXPECT(2)
    INB(COM1 + 2)
    and eax, 0x0f
    EXPECT(1)
    IOAPIC_SET(0x18, VECTOR)

    xor ebx, ebx
2:  inc ebx
    OUTB(COM1, '*')
#if TARGET == 0
3:  cli
    cmp [rip + causes], ebx
    jae 4f
    sti
    hlt
    jmp 3b
4:  sti
#else
3:  pause
    cmp [rip + causes], ebx
    jb 3b
#endif
    cmp ebx, BYTES
    jb 2b
    mov eax, [rip + causes]
    EXPECT(BYTES)

    /* Masked again: four edges, each ended by reading its cause, and none comes. */
    IOAPIC_SET(0x18, 0x10000 | VECTOR)
    mov ebx, 4
5:  OUTB(COM1, '-')
    INB(COM1 + 2)
    dec ebx
    jnz 5b
    mov ecx, 2000
6:  dec ecx
    jnz 6b
    mov eax, [rip + count]
    sub eax, BYTES
    shr eax, 1
    EXPECT(0)
    mov eax, [rip + spurious]
    EXPECT(0)
    OUTB(COM1 + 1, 0)
    SAY("\nirq\n")
    jmp power_off

on_serial:
    push rax
    push rcx
    push rdx
    /* The cause: transmitter empty. */
    INB(COM1 + 2)
    and eax, 0x0f
    cmp eax, 2
    jne 1f
    mov ecx, 1
    jmp 2f
1:  xor ecx, ecx
2:  push rcx
    END_OF_INTERRUPT
    pop rcx
    inc dword ptr [rip + count]
    add [rip + causes], ecx
    pop rdx
    pop rcx
    pop rax
    iretq
on_spurious:
    inc dword ptr [rip + spurious]
    iretq
ap_start:
    lidt [rip + idt_pointer]
    lock inc dword ptr [rip + started]
    sti
1:  hlt
    jmp 1b
ROUTINES
APIC_ROUTINES
.section .bss
count: .long 0
causes: .long 0
spurious: .long 0
started: .long 0

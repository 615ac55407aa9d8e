/* A level-triggered entry of the I/O APIC is refused: it stays masked, and the guest can see that. */
#include "guest.h"
    mov ebx, IOAPIC
    mov dword ptr [rbx], 0x18
    mov dword ptr [rbx + 0x10], 0x8041
    mov eax, [rbx + 0x10]
    EXPECT(0x18041)
    SAY("level\n")
    jmp power_off
ROUTINES

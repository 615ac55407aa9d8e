/* Jumps to where no memory is: there is nothing to fetch, and no KVM can go on. */
#include "guest.h"
    SAY("before\n")
    mov eax, PCI_WINDOW + 0x123000
    jmp rax
ROUTINES

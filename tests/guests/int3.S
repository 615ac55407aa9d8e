/* int3 in ring 0: a KVM without hardware virtualization cannot emulate it; any other delivers it. */
#include "guest.h"
    SAY("before\n")
    .globl trap
trap:
    int3
    SAY("after\n")
    jmp power_off
ROUTINES

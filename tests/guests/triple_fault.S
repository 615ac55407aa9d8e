/* An exception with an empty interrupt table. */
#include "guest.h"
    SAY("before\n")
    lidt [rip + empty]
    ud2
    SAY("after\n")
    jmp power_off
ROUTINES
empty:
    .word 0
    .quad 0

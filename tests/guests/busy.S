/* Says that it is up and spins, with interrupts off. */
#include "guest.h"
    SAY("ready\n")
1:  jmp 1b
ROUTINES

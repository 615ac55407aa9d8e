/* For the bench: the first thing it does is a serial byte. Then it halts, or ends if END is given. */
#define OWN_START
#include "guest.h"
_start:
    OUTB(COM1, '!')
#ifdef END
    OUTB(SLEEP_CONTROL, 0x20)
#endif
1:  hlt
    jmp 1b

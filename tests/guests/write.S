/* Writes VALUE to PORT (WIDTH b, w or l), and should not get any further. */
#include "guest.h"
#define PASTE(a, b) a ## b
#define OUT(width) PASTE(OUT, width)
    SAY("before\n")
    OUT(WIDTH)(PORT, VALUE)
    SAY("after\n")
    jmp halt
ROUTINES

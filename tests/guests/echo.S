/* Sends back what it receives, each letter one further in the alphabet, until a line feed. */
#include "guest.h"
    SAY("ready\n")
1:  INB(COM1 + 5)
    test al, 1
    jz 1b
    INB(COM1)
    cmp al, '\n'
    je 2f
    inc eax
    mov edx, COM1
    out dx, al
    jmp 1b
2:  SAY("\n")
    jmp power_off
ROUTINES

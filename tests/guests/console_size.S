/*
 * The size of the virtio console in slot 1, from its configuration: rows and columns in one number, said
 * at the start and when it has changed, with the configuration's generation in front of it.
 */
#include "guest.h"
#define CONFIG(offset) OUTL(0xcf8, 0x80000800 + offset); INL(0xcfc)
#define GENERATION 0x15
#define DEVICE 0x2000

    CONFIG(0)
    EXPECT(0x10431af4)
    CONFIG(0x10)
    and eax, ~0xf
    mov r15d, eax
    mov ebx, [r15 + DEVICE]
    call show
1:  pause
    mov ebx, [r15 + DEVICE]
    cmp ebx, r9d
    je 1b
    call show
    jmp power_off

show:
    mov r9d, ebx
    movzx edi, byte ptr [r15 + GENERATION]
    shl rdi, 32
    or rdi, rbx
    call say_number
    SAY("\n")
    ret
ROUTINES

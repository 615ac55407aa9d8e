/* Port accesses of every width, single and by string instructions: each must reach its device whole. */
#include "guest.h"
    cld
    /* Bytes: the scratch register of the serial port, a byte of CMOS. */
    OUTB(COM1 + 7, 0xa5)
    INB(COM1 + 7)
    EXPECT(0xa5)
    OUTB(0x70, 0x40)
    OUTB(0x71, 0x5c)
    INB(0x71)
    EXPECT(0x5c)

    /* Words: PM1 enable keeps timer, global, power, sleep and RTC; PM1 control its sleep type. */
    OUTW(0x602, 0xffff)
    INW(0x602)
    EXPECT(0x721)
    OUTW(0x602, 0)
    INW(0x602)
    EXPECT(0)
    OUTW(0x604, 0x0401)
    INW(0x604)
    EXPECT(0x401)

    /* Double words, and the parts of one: host bridge 8086:29c0. */
    OUTL(0xcf8, 0x80000000)
    INL(0xcf8)
    EXPECT(0x80000000)
    INL(0xcfc)
    EXPECT(0x29c08086)
    INW(0xcfc)
    EXPECT(0x8086)
    INW(0xcfe)
    EXPECT(0x29c0)
    INB(0xcfc)
    EXPECT(0x86)
    INB(0xcff)
    EXPECT(0x29)

    /* Where there is nothing, or no register of this width: all ones, and a write is nothing. */
    OUTB(0x10, 1)
    OUTW(0x1234, 1)
    OUTL(0xfffc, 1)
    INB(0x10)
    EXPECT(0xff)
    INW(0x1234)
    EXPECT(0xffff)
    INL(0xfffc)
    EXPECT(0xffffffff)
    INL(COM1)
    EXPECT(0xffffffff)
    /* Across the end of a device. */
    INW(COM1 + 7)
    EXPECT(0xffff)

    /* String instructions: every item, in order. */
    lea rsi, [rip + text]
    mov ecx, offset text_end - text
    mov edx, COM1
    rep outsb

    lea rdi, [rip + buffer]
    mov ecx, 4
    mov edx, COM1 + 7
    rep insb
    mov eax, [rip + buffer]
    EXPECT(0xa5a5a5a5)

    lea rdi, [rip + buffer]
    mov ecx, 4
    mov edx, 0xcfc
    rep insw
    mov rax, [rip + buffer]
    EXPECT(0x8086808680868086)

    lea rdi, [rip + buffer]
    mov ecx, 2
    mov edx, 0xcfc
    rep insd
    mov rax, [rip + buffer]
    EXPECT(0x29c0808629c08086)

    /* The last word and the last double word stay. */
    lea rsi, [rip + words]
    mov ecx, 3
    mov edx, 0x602
    rep outsw
    INW(0x602)
    EXPECT(0x21)
    lea rsi, [rip + addresses]
    mov ecx, 2
    mov edx, 0xcf8
    rep outsd
    INL(0xcfc)
    EXPECT(0x29188086)

    /* Many items: more than fit one exit. */
    lea rdi, [rip + buffer]
    mov ecx, 6000
    mov edx, COM1 + 7
    rep insb
    lea rdi, [rip + buffer]
    mov ecx, 6000
    mov al, 0xa5
    repe scasb
    mov eax, ecx
    EXPECT(0)

    SAY("ports\n")
    jmp power_off
ROUTINES
text:
    .ascii "string\n"
text_end:
words:
    .word 0x700, 0x401, 0x21
addresses:
    .long 0x80000000, 0x8000f800
.section .bss
buffer:
    .skip 8192

/* Entered by its PVH note, in 32-bit protected mode without paging, ebx at the start_info. */
.intel_syntax noprefix
.section .note.pvh, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long _start

.section .text
.code32
.globl _start
_start:
    mov esi, offset good
    cmp dword ptr [ebx], 0x336ec578     /* the magic number of start_info */
    jne bad
    mov eax, cr0
    and eax, 0x80000001                 /* paging off, protection on */
    cmp eax, 1
    je 1f
bad:
    mov esi, offset wrong
1:  mov edx, 0x3f8
2:  lodsb
    test al, al
    jz 3f
    out dx, al
    jmp 2b
3:  mov edx, 0x614
    mov al, 0x20
    out dx, al
4:  hlt
    jmp 4b
good:
    .asciz "pvh\n"
wrong:
    .asciz "not entered as PVH says\n"

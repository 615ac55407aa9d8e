/*
 * Load for the virtio block device in slot 1: a driver in ring 3, where KVM runs it on the processor
 * itself, keeps DEPTH requests of 4 KiB in flight at random pages of a disk of PAGES pages (a power of
 * two), REQUESTS in all, each checked. KIND 0 reads, and 1 writes, pages that begin with their number
 * XOR PATTERN. With IRQ 1 it looks at the used ring only when an interrupt has come, else it polls.
 * Says 's' when it begins, 'e' when it has ended well, and then waits or, with OFF 1, switches off.
 */
#include "guest.h"
#include "blk.h"
/* Entries of the ring: a power of two, at least 3 * DEPTH. */
#ifndef SIZE
#define SIZE 128
#endif
#define PATTERN 0x000746476d6d6c6b
/* Offsets in the available and the used ring: virtio 1.3, 2.7.6 and 2.7.8. */
#define USED_EVENT (4 + 2 * SIZE)
#define AVAIL_EVENT (4 + 8 * SIZE)
/* With the second one, writes may stay in the host's page cache. */
#define F_EVENT_IDX (1 << 29)
#define F_FLUSH (1 << 9)
#define PML4 0x9000
#define TABLES_END 0xf000
#define INVALID_OPCODE 6
#define USER_CODE (0x20 | 3)
#define USER_DATA (0x28 | 3)
#define TSS 0x30
#define RFLAGS_IF 0x200

    START_DISK SIZE, F_EVENT_IDX|F_FLUSH

    /* Three descriptors for each request: header, data, status. */
    xor ecx, ecx
    lea rdi, [rip + descriptors]
    lea rsi, [rip + headers]
    lea r8, [rip + buffers]
    lea r9, [rip + statuses]
1:  mov [rdi], rsi
    mov dword ptr [rdi + 8], 16
    mov word ptr [rdi + 12], 1
    lea eax, [ecx * 2 + ecx + 1]
    mov [rdi + 14], ax
    mov [rdi + 16], r8
    mov dword ptr [rdi + 24], 4096
    mov word ptr [rdi + 28], 1 + 2 * (1 - KIND)
    inc eax
    mov [rdi + 30], ax
    mov [rdi + 32], r9
    mov dword ptr [rdi + 40], 1
    mov word ptr [rdi + 44], 2
    mov dword ptr [rsi], KIND
    add rdi, 48
    add rsi, 16
    add r8, 4096
    inc r9
    inc ecx
    cmp ecx, DEPTH
    jb 1b

    /* All memory for ring 3, too: the user bit in each entry of all tables. */
    mov edi, PML4
1:  mov rax, [rdi]
    test al, 1
    jz 2f
    or qword ptr [rdi], 4
2:  add edi, 8
    cmp edi, TABLES_END
    jb 1b
    mov rax, cr3
    mov cr3, rax

    /* Segments of ring 3, and the stack on which it is interrupted. */
    lea rax, [rip + tss]
    mov [rip + tss_descriptor + 2], ax
    shr rax, 16
    mov [rip + tss_descriptor + 4], al
    mov [rip + tss_descriptor + 7], ah
    lgdt [rip + gdt_pointer]
    mov eax, TSS
    ltr ax
    mov edi, VECTOR
    lea rsi, [rip + on_queue]
    call set_gate
    mov edi, INVALID_OPCODE
    lea rsi, [rip + on_end]
    call set_gate
    lidt [rip + idt_pointer]
    OUTB(COM1, 's')
    push USER_DATA
    push offset user_stack_end
    push 2 + IRQ * RFLAGS_IF
    push USER_CODE
    push offset user
    iretq

/* Ring 3 ends with ud2; rax is 0 if all went well, else a line number. */
on_end:
    mov rdi, rax
    xor ecx, ecx
    call expect
    OUTB(COM1, 'e')
#if OFF
    jmp power_off
#else
    jmp halt
#endif

on_queue:
    push rax
    push rcx
    push rdx
    END_OF_INTERRUPT
    inc dword ptr [rip + interrupts]
    pop rdx
    pop rcx
    pop rax
    iretq

#define FAIL_IF(condition) mov eax, __LINE__; condition leave_user
/*
 * r8, r9: available and used ring. r10w: used elements seen. r11w: available index. r12: random state.
 * r13d: requests to be submitted yet. r14d: requests to be seen yet. rbx: notify register.
 */
user:
    lea r8, [rip + available]
    lea r9, [rip + used]
    lea rbx, [r15 + NOTIFY]
    xor r10d, r10d
    xor r11d, r11d
    mov r12, 88172645463325252
    mov r13d, REQUESTS
    mov r14d, REQUESTS
    xor ecx, ecx
1:  call put
    inc ecx
    cmp ecx, DEPTH
    jb 1b
    mov ebp, [rip + interrupts]
    xor esi, esi
#if IRQ
    mov word ptr [r8 + USED_EVENT], 0
#else
    mov word ptr [r8 + USED_EVENT], 0xfffe
#endif
    jmp publish

collect:
    /* esi: the available index before this round. */
    mov esi, r11d
take:
    cmp r10w, [r9 + 2]
    je taken
    movzx eax, r10w
    and eax, SIZE - 1
    mov eax, [r9 + rax * 8 + 4]
    xor edx, edx
    mov ecx, 3
    div ecx
    mov ecx, eax
    cmp ecx, DEPTH
    FAIL_IF(jae)
    lea rdi, [rip + statuses]
    cmp byte ptr [rdi + rcx], 0
    FAIL_IF(jne)
    mov byte ptr [rdi + rcx], 0xff
#if KIND == 0
    mov eax, ecx
    shl eax, 12
    lea rdi, [rip + buffers]
    mov rax, [rdi + rax]
    mov rdx, PATTERN
    xor rax, rdx
    lea rdi, [rip + pages]
    cmp rax, [rdi + rcx * 8]
    FAIL_IF(jne)
#endif
    inc r10w
    dec r14d
    test r13d, r13d
    jz take
    call put
    jmp take
taken:
    xor eax, eax
    test r14d, r14d
    jz leave_user
#if IRQ
    mov ebp, [rip + interrupts]
    mov [r8 + USED_EVENT], r10w
    lock or dword ptr [rsp - 8], 0
    cmp r10w, [r9 + 2]
    jne take
#else
    lea eax, [r10d - 2]
    mov [r8 + USED_EVENT], ax
    cmp r11w, si
    jne publish
    pause
    jmp take
#endif

publish:
    cmp r11w, si
    je wait
    mov [r8 + 2], r11w
    lock or dword ptr [rsp - 8], 0
    /* Whether the index passed avail_event: virtio 1.3, 2.7.10.1. */
    mov eax, r11d
    sub ax, [r9 + AVAIL_EVENT]
    dec ax
    mov edx, r11d
    sub dx, si
    cmp ax, dx
    jae wait
    mov word ptr [rbx], 0
wait:
#if IRQ
1:  pause
    cmp ebp, [rip + interrupts]
    je 1b
#endif
    jmp collect

/* Makes request ecx available, at a random page. */
put:
    mov rax, r12
    shl rax, 13
    xor r12, rax
    mov rax, r12
    shr rax, 7
    xor r12, rax
    mov rax, r12
    shl rax, 17
    xor r12, rax
    mov eax, r12d
    and eax, PAGES - 1
    lea rdi, [rip + pages]
    mov [rdi + rcx * 8], rax
#if KIND == 1
    push rax
    mov rdx, PATTERN
    xor rax, rdx
    mov edx, ecx
    shl edx, 12
    lea rdi, [rip + buffers]
    mov [rdi + rdx], rax
    pop rax
#endif
    shl rax, 3
    mov edx, ecx
    shl edx, 4
    lea rdi, [rip + headers]
    mov [rdi + rdx + 8], rax
    movzx eax, r11w
    and eax, SIZE - 1
    lea edx, [rcx * 2 + rcx]
    mov [r8 + rax * 2 + 4], dx
    inc r11w
    dec r13d
    ret

leave_user:
    ud2
ROUTINES
APIC_ROUTINES
ap_start:
    hlt

.section .data
.balign 8
gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00affb000000ffff, 0x00cff3000000ffff
tss_descriptor:
    .quad 0x0000890000000067, 0
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt
.balign 8
tss:
    .long 0
    .quad kernel_stack_end
    .skip 92
.section .bss
.balign 4096
available:
    .skip 4096
used:
    .skip 12288
descriptors:
    .skip 16 * SIZE
headers:
    .skip 16 * DEPTH
statuses:
    .skip DEPTH
.balign 8
pages:
    .skip 8 * DEPTH
interrupts: .long 0
.balign 4096
buffers:
    .skip 4096 * DEPTH
kernel_stack:
    .skip 4096
kernel_stack_end:
user_stack:
    .skip 4096
user_stack_end:

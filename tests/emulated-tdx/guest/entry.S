/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Entry of the stress TD: 32-bit flat protected mode without paging, ESI is the vCPU's index. */
#include "stress.h"

	.section .header, "a"
	.quad	entry, on_timer, on_ipi, on_ve, on_fault

	.text
	.code32
	.global	entry
entry:
	mov	%cr4, %eax
	or	$0x20, %eax			/* PAE */
	mov	%eax, %cr4
	mov	$(IMAGE + 0x4000), %eax
	mov	%eax, %cr3
	mov	%cr0, %eax
	or	$0x80010001, %eax		/* PG, WP, PE; EFER.LME is set from the start */
	mov	%eax, %cr0
	lgdtl	IMAGE + 0xa000
	imul	$STACK_STRIDE, %esi, %esp
	add	$(STACKS + 0x17f0), %esp
	pushl	$8
	pushl	$long_mode
	lretl

	.code64
long_mode:
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	%esp, %esp			/* clears the upper half */
	mov	$(IMAGE + 0xa010), %ecx
	lidt	(%rcx)
	mov	%esi, %eax			/* task register: selector 0x20 + 16 * index */
	shl	$4, %eax
	add	$0x20, %eax
	ltr	%ax
	mov	%esi, %edi
	and	$-16, %rsp
	mov	$stress_main, %eax
	call	*%rax

	.section .note.GNU-stack, "", @progbits

/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Entry of the stress TD: 32-bit flat protected mode without paging, ESI is the vCPU's index. */
#include "start.h"
#include "stress.h"

	.section .header, "a"
	.quad	entry, on_timer, on_ipi, on_ve, on_fault

	.text
	.global	entry
entry:
	to_long_mode IMAGE+0x4000, IMAGE+0xa000
	imul	$STACK_STRIDE, %esi, %esp
	add	$(STACKS + 0x17f0), %esp
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

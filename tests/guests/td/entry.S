/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A firmware image of 64 KiB for `tdvmm --firmware`, one vCPU: descriptor, page tables, entry. What it does is in the
 * C file beside it. Memory is mapped as page_tables says.
 */
#include "../../emulated-tdx/guest/start.h"

	.set	image, 0xffff0000

	.text
	.global	entry
entry:
	to_long_mode pml4, gdt_pointer
	mov	$stack_top, %esp
	mov	$td_main, %eax
	call	*%rax

	/* TDX Virtual Firmware Design Guide, 11: one boot volume, and where the hand-off blocks go. */
	.data
	.balign	16
descriptor:
	.ascii	"TDVF"
	.long	descriptor_end - descriptor, 1, 2
	.long	0, 0x10000			/* offset and size in the file */
	.quad	image, 0x10000
	.long	0, 1				/* BFV, measured */
	.long	0, 0
	.quad	0x809000, 0x2000
	.long	2, 0				/* TD_HOB */
descriptor_end:

	descriptor_table
	page_tables
	.fill	4096, 1, 0
stack_top:

	.section .end, "a"
	.long	descriptor - image		/* at 4 GiB - 0x20: where the descriptor is */
	.fill	12, 1, 0
	.code32
	jmp	entry				/* the reset vector */
	.balign	16

	.section .note.GNU-stack, "", @progbits

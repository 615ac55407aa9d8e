/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Entry, tables and TDX metadata of the firmware of the TD cases.
 */
#include "cases.h"
#include "start.h"

	.text
	.global	entry
entry:
	to_long_mode pml4, gdt_pointer
	imul	$STACK_SIZE, %esi, %esp
	add	$(STACKS + STACK_SIZE), %esp
	mov	%esi, %edi
	and	$-16, %rsp
	mov	$case_main, %eax
	call	*%rax

	.section .tables, "aw"
	page_tables

	.section .data, "aw"
	descriptor_table

/* ---- TDX metadata (TDVF Design Guide): the image, hand-off blocks, stacks ------------------ */

	.macro	part data_at, raw, at, len, kind, attributes
	.long	\data_at, \raw
	.quad	\at, \len
	.long	\kind, \attributes
	.endm

	.section .descriptor, "a"
descriptor:
	.ascii	"TDVF"
	.long	16 + 3 * 32, 1, 3		/* length, version, sections */
	part	0, IMAGE_SIZE, IMAGE, IMAGE_SIZE, 0, 1
	part	0, 0, HOB, HOB_SIZE, 2, 0
	part	0, 0, STACKS, STACK_SIZE*MAX_VCPUS, 3, 0

/* The GUID table ends 0x20 bytes before the end: entries, then the footer with the length of all. */
	.section .guids, "a"
	.fill	0xe0 - 22 - 18, 1, 0
table:
	.long	IMAGE_SIZE - 0xe000		/* the descriptor, from the end */
	.word	22
	.byte	0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47
	.byte	0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2
	.word	. - table + 18
	.byte	0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45
	.byte	0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d

	.section .reset, "ax"
	.code32
	jmp	entry

	.section .note.GNU-stack, "", @progbits

/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Entry, tables and TDX metadata of the firmware of the TD cases. A vCPU of a TD starts in 32-bit
 * flat protected mode without paging; ESI is its index, RCX the address of the hand-off blocks.
 */
#include "cases.h"

	.text
	.code32
	.global	entry
entry:
	mov	%cr4, %eax
	or	$0x20, %eax			/* PAE */
	mov	%eax, %cr4
	mov	$pml4, %eax
	mov	%eax, %cr3
	mov	%cr0, %eax
	or	$0x80010001, %eax		/* PG, WP, PE; EFER.LME is set from the start */
	mov	%eax, %cr0
	lgdtl	gdt_pointer
	imul	$STACK_SIZE, %esi, %esp
	add	$(STACKS + STACK_SIZE), %esp
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
	mov	%esi, %edi
	and	$-16, %rsp
	mov	$case_main, %eax
	call	*%rax

/* ---- page tables: 0..1 GiB private, 1..2 GiB the same shared, 3..4 GiB private ------------ */

	.section .tables, "aw"
	.balign	4096
pml4:	.quad	pdpt + 3
	.fill	511, 8, 0
pdpt:	.quad	low + 3, low_shared + 3, 0, high + 3
	.fill	508, 8, 0
low:
	.set	page, 0
	.rept	512
	.quad	page + 0x83
	.set	page, page + 0x200000
	.endr
low_shared:
	.set	page, SHARED_BIT
	.rept	512
	.quad	page + 0x83
	.set	page, page + 0x200000
	.endr
high:
	.set	page, 0xc0000000
	.rept	512
	.quad	page + 0x83
	.set	page, page + 0x200000
	.endr

/* ---- descriptors -------------------------------------------------------------------------- */

	.section .data, "aw"
	.balign	16
gdt:	.quad	0
	.quad	0x00af9b000000ffff		/* 64-bit code */
	.quad	0x00cf93000000ffff		/* data */
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt

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

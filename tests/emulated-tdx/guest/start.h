/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * How a vCPU of a TD gets from where the TDX module starts it to 64-bit code, for all images of the tests. It starts
 * in flat 32-bit protected mode without paging, ESI its index and ECX the address of the hand-off blocks; both stay.
 */
#ifndef START_H
#define START_H

/*
 * With the page tables at `tables` and the GDT that `gdt_pointer` tells of. Its selector `code` is for 64-bit code, the
 * next one for data. There is no stack yet. The upper halves of the registers are undefined.
 */
	.macro	to_long_mode tables, gdt_pointer, code=8
	.code32
	mov	%cr4, %eax
	or	$0x20, %eax			/* PAE */
	mov	%eax, %cr4
	mov	$\tables, %eax
	mov	%eax, %cr3
	mov	%cr0, %eax
	or	$0x80010001, %eax		/* PG, WP, PE; EFER.LME is set from the start */
	mov	%eax, %cr0
	lgdtl	\gdt_pointer
	ljmp	$\code, $long_mode
	.code64
long_mode:
	mov	$\code + 8, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	.endm

	.macro	map_gib from
	.set	page, \from
	.rept	512
	.quad	page + 0x83			/* present, writable, 2 MiB */
	.set	page, page + 0x200000
	.endr
	.endm

/* The page tables `pml4`: 0..1 GiB private, 1..2 GiB the same memory shared, 3..4 GiB private, for the image. */
	.macro	page_tables
	.balign	4096
pml4:	.quad	pdpt + 3
	.fill	511, 8, 0
pdpt:	.quad	private_low + 3, shared_low + 3, 0, private_high + 3
	.fill	508, 8, 0
private_low:
	map_gib	0
shared_low:
	map_gib	1 << 47
private_high:
	map_gib	0xc0000000
	.endm

/* The GDT that goes with them, and `gdt_pointer`. */
	.macro	descriptor_table
	.balign	16
gdt:	.quad	0
	.quad	0x00af9b000000ffff		/* 64-bit code */
	.quad	0x00cf93000000ffff		/* data */
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
	.endm

#endif

/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A firmware image of 64 KiB for `tdvmm --firmware`, one vCPU: descriptor, page tables, entry. What it does is in
 * memory.c. The TDX module starts it in flat 32-bit protected mode at the reset vector.
 *
 *	0..1 GiB   private GPA 0..1 GiB
 *	1..2 GiB   the same GPAs with the shared bit
 *	3..4 GiB   private, identity (this image)
 */
	.set	image, 0xffff0000
	.set	shared_bit, 1 << 47

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
	mov	$stack_top, %esp
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
	mov	$memory_main, %eax
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

	.balign	16
gdt:
	.quad	0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt

	.balign	4096
pml4:
	.quad	pdpt + 3
	.fill	511, 8, 0
pdpt:
	.quad	private_low + 3, shared_low + 3, 0, private_high + 3
	.fill	508, 8, 0
private_low:
	.set	at, 0
	.rept	512
	.quad	at + 0x83
	.set	at, at + 0x200000
	.endr
shared_low:
	.set	at, shared_bit
	.rept	512
	.quad	at + 0x83
	.set	at, at + 0x200000
	.endr
private_high:
	.set	at, 0xc0000000
	.rept	512
	.quad	at + 0x83
	.set	at, at + 0x200000
	.endr
	.fill	4096, 1, 0
stack_top:

	.section .end, "a"
	.long	descriptor - image		/* at 4 GiB - 0x20: where the descriptor is */
	.fill	12, 1, 0
	.code32
	jmp	entry				/* the reset vector */
	.balign	16

	.section .note.GNU-stack, "", @progbits

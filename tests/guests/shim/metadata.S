/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What the image says of itself: the TDX descriptor with its sections, and the two ways that lead to it, the table of
 * GUIDs (TDVF design guide) and the pointer of older TD-Shims.
 */
#include "shim.h"

#define EXTEND	1

	/* File offset, bytes in the file, address, bytes of memory, type, attributes. */
	.macro	section offset, raw, address, size, type, attributes
	.long	\offset, \raw
	.quad	\address, \size
	.long	\type, \attributes
	.endm

	.section .metadata, "a"
	.balign	16
	/* e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae */
	.byte	0xf3, 0xf9, 0xea, 0xe9, 0x8e, 0x16, 0xd5, 0x44, 0xa8, 0xeb, 0x7f, 0x4d, 0x87, 0x38, 0xf6, 0xae
	.global	descriptor
descriptor:				/* at DESCRIPTOR */
	.ascii	"TDVF"
	.long	end - descriptor, 1, (end - first) / 32
first:
	section	BFV_OFFSET, BFV_SIZE, BFV, BFV_SIZE, 0, EXTEND
	section	0, 0, STACKS, STACKS_SIZE, 3, 0
	section	0, 0, VARIABLES, VARIABLES_SIZE, 3, 0
	section	0, 0, MAILBOX, 0x1000, 3, 0
	section	0, 0, TD_HOB, TD_HOB_SIZE, 2, 0
	section	0, 0, PAYLOAD, PAYLOAD_SIZE, 5, 0
	section	0, 0, PARAMETERS, PARAMETERS_SIZE, 6, 0
	section	TD_INFO_OFFSET, td_info_end-td_info, 0, 0, 7, 0
end:
	/* Facts about the image, not loaded: GUID, length, version, security version number. */
	.org	0x200
td_info:
	.byte	0x61, 0xb1, 0x0e, 0x3d, 0x8a, 0x5c, 0x9d, 0x47, 0x91, 0x5a, 0x11, 0x0c, 0x6e, 0x5b, 0x4d, 0x02
	.long	td_info_end - td_info, 1
	.quad	1
td_info_end:

	.section .guids, "a"
	/* e47a6535-984a-4798-865e-4685a7bf8ec2: distance of the descriptor from the end of the image. */
guids:	.long	BFV + BFV_SIZE - DESCRIPTOR
	.word	22
	.byte	0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2
	/* 96b582de-1fb2-45f7-baea-a366c55a082d, with the length of the table before it. */
	.word	. - guids + 18
	.byte	0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d
	/* 32 bytes before the end: offset of the descriptor in the file. */
	.long	DESCRIPTOR_OFFSET

	.section .note.GNU-stack, "", @progbits

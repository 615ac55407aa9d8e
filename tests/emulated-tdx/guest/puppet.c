// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * The TD on strings: makes the TDVMCALLs that the prober tells it to, and tells what came of each. Orders and answers
 * are port accesses of four bytes, so that nothing but the ABI is between the two.
 *
 *	IN  PORT_ORDER	 12 times: R10 to R15, each low half first
 *	    the call, with MARK in XMM0
 *	OUT PORT_ANSWER	 6 times: R10, R11 and XMM0
 */
#include "stress.h"

typedef unsigned int u32;
typedef unsigned long u64;

enum { VMCALL_IO = 30 };
enum { R10, R11, R12, R13, R14, R15 };

static const u64 MARK = 0x6b72616d206d6d78;

static void vmcall(u64 *r)
{
	register u64 r10 asm("r10") = r[R10], r11 asm("r11") = r[R11], r12 asm("r12") = r[R12];
	register u64 r13 asm("r13") = r[R13], r14 asm("r14") = r[R14], r15 asm("r15") = r[R15];
	u64 leaf = 0, passed = 0xfc00;		/* TDG.VP.VMCALL; R10 to R15 */

	asm volatile(".byte 0x66,0x0f,0x01,0xcc"
		     : "+a"(leaf), "+c"(passed), "+r"(r10), "+r"(r11), "+r"(r12), "+r"(r13),
		       "+r"(r14), "+r"(r15)
		     : : "memory");
	r[R10] = r10;
	r[R11] = r11;
}

static u32 in(u32 port)
{
	u64 r[] = { 0, VMCALL_IO, 4, 0, port, 0 };

	vmcall(r);
	return r[R11];
}

static void out(u32 port, u64 value)
{
	for (u32 half = 0; half < 2; half++) {
		u64 r[] = { 0, VMCALL_IO, 4, 1, port, (u32)(value >> 32 * half) };

		vmcall(r);
	}
}

void puppet(void)
{
	u64 cr4, xmm0, r[6];

	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	asm volatile("mov %0, %%cr4" : : "r"(cr4 | 1 << 9));		/* OSFXSR */
	for (;;) {
		for (u32 i = 0; i < 6; i++) {
			r[i] = in(PORT_ORDER);
			r[i] |= (u64)in(PORT_ORDER) << 32;
		}
		asm volatile("movq %0, %%xmm0" : : "r"(MARK));
		vmcall(r);
		asm volatile("movq %%xmm0, %0" : "=r"(xmm0));
		out(PORT_ANSWER, r[R10]);
		out(PORT_ANSWER, r[R11]);
		out(PORT_ANSWER, xmm0);
	}
}

/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What the small TDs share: calls to the TDX module and to the host, and words that look random. entry.S maps
 * memory twice, private from 0 and shared from SHARED_ALIAS on.
 */
#ifndef TD_H
#define TD_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define PAGE		4096UL
#define SHARED_BIT	(1UL << 47)
#define SHARED_ALIAS	(1UL << 30)

enum { VP_VMCALL = 0, MEM_PAGE_ACCEPT = 6 };
enum { VMCALL_IO = 30, VMCALL_MMIO = 48, MAP_GPA = 0x10001 };
enum { COM1 = 0x3f8, COM1_STATUS = 0x3fd, PM1_CONTROL = 0x604 };

struct vmcall {
	u64 status, r11, r12, r13, r14, r15;
};

static inline void vmcall(struct vmcall *c)
{
	register u64 r10 asm("r10") = 0, r11 asm("r11") = c->r11, r12 asm("r12") = c->r12;
	register u64 r13 asm("r13") = c->r13, r14 asm("r14") = c->r14, r15 asm("r15") = c->r15;
	u64 leaf = VP_VMCALL, passed = 0xfc00;		/* R10 to R15 */

	asm volatile(".byte 0x66,0x0f,0x01,0xcc"
		     : "+a"(leaf), "+c"(passed), "+r"(r10), "+r"(r11), "+r"(r12), "+r"(r13),
		       "+r"(r14), "+r"(r15)
		     : : "rdx", "r8", "r9", "memory");
	c->status = r10;
	c->r11 = r11;
}

static inline u64 accept(u64 gpa)
{
	u64 leaf = MEM_PAGE_ACCEPT, rcx = gpa;

	asm volatile(".byte 0x66,0x0f,0x01,0xcc"
		     : "+a"(leaf), "+c"(rcx) : : "rdx", "r8", "r9", "r10", "r11", "memory");
	return leaf;
}

static inline void out(u32 port, u32 size, u32 value)
{
	struct vmcall c = { .r11 = VMCALL_IO, .r12 = size, .r13 = 1, .r14 = port, .r15 = value };

	vmcall(&c);
}

static inline u32 in(u32 port, u32 size)
{
	struct vmcall c = { .r11 = VMCALL_IO, .r12 = size, .r13 = 0, .r14 = port };

	vmcall(&c);
	return c.r11;
}

static inline void say(const char *text)
{
	while (*text)
		out(COM1, 1, *text++);
}

static inline void say_number(u64 number)
{
	for (int shift = 60; shift >= 0; shift -= 4)
		out(COM1, 1, "0123456789abcdef"[number >> shift & 15]);
}

static inline u8 hear(void)
{
	while (!(in(COM1_STATUS, 1) & 1))
		;
	return in(COM1, 1);
}

static inline void stop(void)
{
	out(PM1_CONTROL, 2, 1 << 13);
	for (;;)
		;
}

static inline void must(int good, const char *what)
{
	if (good)
		return;
	say("FAIL ");
	say(what);
	say("\n");
	stop();
}

static inline void map(u64 gpa, u64 size, u64 shared)
{
	u64 at = gpa, end = gpa + size;

	while (at < end) {
		struct vmcall c = { .r11 = MAP_GPA, .r12 = at | shared, .r13 = end - at };

		vmcall(&c);
		if (c.status == 0)
			return;
		must(c.status == 1, "MapGPA");		/* RETRY, from R11 on */
		at = c.r11 & ~SHARED_BIT;
	}
}

static inline u64 rdtsc(void)
{
	u32 a, d;

	asm volatile("rdtsc" : "=a"(a), "=d"(d));
	return a | (u64)d << 32;
}

/* splitmix64 */
static inline u64 word(u64 seed, u64 number)
{
	u64 z = seed + (number + 1) * 0x9e3779b97f4a7c15UL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9UL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebUL;
	return z ^ z >> 31;
}

#endif

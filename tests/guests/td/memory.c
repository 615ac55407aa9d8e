// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * A TD whose memory is looked at from outside. It does what it is told on COM1, a letter a command, and answers with
 * a line:
 *
 *	p     accepts the page TOKEN_PAGE if needed and writes a new token to it   PRIVATE seed
 *	s     the same page shared, with a new token                               SHARED seed
 *	aN    accepts and writes N - '0' times 16 MiB from REGION on               ACCEPTED
 *	x     converts those to shared and writes a word to each page              ALL-SHARED
 *	y     converts them back, accepts and writes them                          ALL-PRIVATE
 *	q     switches the machine off
 *
 * A token is 64 bytes that both sides make of its seed, a time stamp: the token itself never goes through a port.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

#define SHARED_BIT	(1UL << 47)
#define SHARED_ALIAS	(1UL << 30)
#define TOKEN_PAGE	(32UL << 20)
#define TOKEN_WORDS	8
#define REGION		(64UL << 20)
#define UNIT		(16UL << 20)

enum { VP_VMCALL = 0, MEM_PAGE_ACCEPT = 6 };
enum { VMCALL_IO = 30, MAP_GPA = 0x10001 };
enum { COM1 = 0x3f8, COM1_STATUS = 0x3fd, PM1_CONTROL = 0x604 };

struct vmcall {
	u64 status, r11, r12, r13, r14, r15;
};

static void vmcall(struct vmcall *c)
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

static u64 accept(u64 gpa)
{
	u64 leaf = MEM_PAGE_ACCEPT, rcx = gpa;

	asm volatile(".byte 0x66,0x0f,0x01,0xcc"
		     : "+a"(leaf), "+c"(rcx) : : "rdx", "r8", "r9", "r10", "r11", "memory");
	return leaf;
}

static void out(u32 port, u32 size, u32 value)
{
	struct vmcall c = { .r11 = VMCALL_IO, .r12 = size, .r13 = 1, .r14 = port, .r15 = value };

	vmcall(&c);
}

static u8 in(u32 port)
{
	struct vmcall c = { .r11 = VMCALL_IO, .r12 = 1, .r13 = 0, .r14 = port };

	vmcall(&c);
	return c.r11;
}

static void say(const char *text)
{
	while (*text)
		out(COM1, 1, *text++);
}

static void say_number(u64 number)
{
	for (int shift = 60; shift >= 0; shift -= 4)
		out(COM1, 1, "0123456789abcdef"[number >> shift & 15]);
}

static u8 hear(void)
{
	while (!(in(COM1_STATUS) & 1))
		;
	return in(COM1);
}

static void stop(void)
{
	out(PM1_CONTROL, 2, 1 << 13);
	for (;;)
		;
}

static void must(int good, const char *what)
{
	if (good)
		return;
	say("FAIL ");
	say(what);
	say("\n");
	stop();
}

static void map(u64 gpa, u64 size, u64 shared)
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

static u64 rdtsc(void)
{
	u32 a, d;

	asm volatile("rdtsc" : "=a"(a), "=d"(d));
	return a | (u64)d << 32;
}

/* splitmix64 */
static u64 word(u64 seed, u64 number)
{
	u64 z = seed + (number + 1) * 0x9e3779b97f4a7c15UL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9UL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebUL;
	return z ^ z >> 31;
}

static void write_token(volatile u64 *page, const char *how)
{
	u64 seed = rdtsc();

	for (u64 i = 0; i < TOKEN_WORDS; i++)
		page[i] = word(seed, i);
	say(how);
	say_number(seed);
	say("\n");
}

static void accept_and_write(u64 from, u64 size)
{
	for (u64 p = from; p < from + size; p += 4096) {
		must(accept(p) == 0, "accept");
		*(volatile u64 *)p = p;
	}
}

void memory_main(void)
{
	int accepted = 0, shared = 0;
	u64 size = 0;

	say("READY\n");
	for (;;) {
		switch (hear()) {
		case 'p':
			if (shared)
				map(TOKEN_PAGE, 4096, 0);
			if (shared || !accepted)
				must(accept(TOKEN_PAGE) == 0, "accept");
			accepted = 1;
			shared = 0;
			write_token((u64 *)TOKEN_PAGE, "PRIVATE ");
			break;
		case 's':
			map(TOKEN_PAGE, 4096, SHARED_BIT);
			shared = 1;
			write_token((u64 *)(SHARED_ALIAS + TOKEN_PAGE), "SHARED ");
			break;
		case 'a':
			size = (hear() - '0') * UNIT;
			accept_and_write(REGION, size);
			say("ACCEPTED\n");
			break;
		case 'x':
			map(REGION, size, SHARED_BIT);
			for (u64 p = REGION; p < REGION + size; p += 4096)
				*(volatile u64 *)(SHARED_ALIAS + p) = ~p;
			say("ALL-SHARED\n");
			break;
		case 'y':
			map(REGION, size, 0);
			accept_and_write(REGION, size);
			say("ALL-PRIVATE\n");
			break;
		case 'q':
			stop();
		}
	}
}

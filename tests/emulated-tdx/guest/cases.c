// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * The firmware of the TD cases: a second's worth of TD in place of a whole Linux.
 *
 * Its orders are the kernel's command line in fw_cfg, one word and perhaps a number; it speaks through COM1, each
 * line complete, and ends by switching the machine off unless its orders say otherwise. All TDVMCALLs are its own, so it
 * can make those that no sound guest makes. A fault prints FAULT, which no case expects.
 */
#include "cases.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* ---- the module and the host -------------------------------------------------------------- */

enum { VP_VMCALL = 0, VP_VEINFO_GET = 3, MEM_PAGE_ACCEPT = 6 };
enum { VMCALL_CPUID = 10, VMCALL_HLT = 12, VMCALL_IO = 30, VMCALL_MMIO = 48, VMCALL_WBINVD = 54 };
enum { GET_TD_VM_CALL_INFO = 0x10000, MAP_GPA, GET_QUOTE, REPORT_FATAL_ERROR, SETUP_EVENT_NOTIFY };
enum { KVM_MAP_GPA_RANGE = 12, MAP_ENCRYPTED = 16 };

static const u64 RETRY = 1;

struct vmcall {
	u64 r10, r11, r12, r13, r14, r15;
};

static void vmcall(struct vmcall *c)
{
	register u64 r10 asm("r10") = c->r10, r11 asm("r11") = c->r11, r12 asm("r12") = c->r12;
	register u64 r13 asm("r13") = c->r13, r14 asm("r14") = c->r14, r15 asm("r15") = c->r15;
	u64 leaf = VP_VMCALL, passed = 0xfc00;		/* R10 to R15 */

	asm volatile(".byte 0x66,0x0f,0x01,0xcc"
		     : "+a"(leaf), "+c"(passed), "+r"(r10), "+r"(r11), "+r"(r12), "+r"(r13),
		       "+r"(r14), "+r"(r15)
		     : : "memory");
	c->r10 = r10;
	c->r11 = r11;
}

/* Status; `out` is given R11. */
static u64 host(u64 nr, u64 r12, u64 r13, u64 r14, u64 r15, u64 *out)
{
	struct vmcall c = { .r11 = nr, .r12 = r12, .r13 = r13, .r14 = r14, .r15 = r15 };

	vmcall(&c);
	if (out)
		*out = c.r11;
	return c.r10;
}

static u64 tdcall(u64 leaf, u64 rcx, u64 *out)
{
	u64 rdx = 0;
	register u64 r8 asm("r8") = 0, r9 asm("r9") = 0, r10 asm("r10") = 0, r11 asm("r11");

	asm volatile(".byte 0x66,0x0f,0x01,0xcc"
		     : "+a"(leaf), "+c"(rcx), "+d"(rdx), "+r"(r8), "+r"(r9), "+r"(r10), "=r"(r11)
		     : : "memory");
	if (out) {
		out[0] = rcx;
		out[1] = r9;
		out[2] = r8;
	}
	return leaf;
}

static void out(u32 port, u32 size, u32 value)
{
	host(VMCALL_IO, size, 1, port, value, 0);
}

static u32 in(u32 port, u32 size)
{
	u64 value = 0;

	host(VMCALL_IO, size, 0, port, 0, &value);
	return value;
}

/* ---- text ----------------------------------------------------------------------------------- */

enum { COM1 = 0x3f8, COM1_STATUS = 0x3fd, DEBUG_PORT = 0x402 };
enum { FW_CFG_SELECT = 0x510, FW_CFG_DATA = 0x511, FW_CFG_CPUS = 5, FW_CFG_CMDLINE = 0x15 };
enum { PM1_CONTROL = 0x604, RESET_CONTROL = 0xcf9 };

static void print(const char *text)
{
	while (*text)
		out(COM1, 1, *text++);
}

static void print_hex(u64 value)
{
	print("0x");
	for (int shift = 60; shift >= 0; shift -= 4)
		if (value >> shift || !shift)
			out(COM1, 1, "0123456789abcdef"[value >> shift & 15]);
}

static void tell(const char *what, u64 value)
{
	print(what);
	print(" ");
	print_hex(value);
	print("\n");
}

static __attribute__((noreturn)) void idle(void)
{
	for (;;)
		host(VMCALL_HLT, 1, 0, 0, 0, 0);
}

static __attribute__((noreturn)) void power_off(void)
{
	out(PM1_CONTROL, 2, 1 << 13);
	idle();
}

static u64 rdmsr(u32 index)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
	return low | (u64)high << 32;
}

/* ---- faults --------------------------------------------------------------------------------- */

struct frame {
	u64 rip, cs, rflags, rsp, ss;
};

static __attribute__((interrupt)) void on_fault(struct frame *f)
{
	tell("FAULT at", f->rip);
	power_off();
}

static __attribute__((interrupt)) void on_fault_with_code(struct frame *f, u64 error)
{
	tell("FAULT with code", error);
	tell("at", f->rip);
	power_off();
}

/* An MSR that the module leaves to the host; a touch of an unaccepted page where SEPT_VE_DISABLE is off. */
static __attribute__((interrupt)) void on_ve(struct frame *f)
{
	u64 info[3];

	tdcall(VP_VEINFO_GET, 0, info);
	tell("#VE reason", (u32)info[0]);
	tell("#VE GPA", info[1]);
	tell("#VE GLA", info[2]);
	power_off();
}

static struct {
	u64 low, high;
} idt[32] __attribute__((aligned(16)));

static void load_idt(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) pointer = { sizeof(idt) - 1, (u64)idt };

	for (u32 i = 0; i < 32; i++) {
		u32 has_code = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21;
		u64 to = i == 20	   ? (u64)on_ve :
			 has_code >> i & 1 ? (u64)on_fault_with_code :
					     (u64)on_fault;

		idt[i].low = (to & 0xffff) | 8 << 16 | 0x8e00UL << 32 | (to >> 16 & 0xffff) << 48;
		idt[i].high = to >> 32;
	}
	asm volatile("lidt %0" : : "m"(pointer));
}

/* ---- memory --------------------------------------------------------------------------------- */

static volatile u64 *shared(u64 gpa)
{
	return (volatile u64 *)((1UL << 30) + gpa);
}

static volatile u64 *private(u64 gpa)
{
	return (volatile u64 *)gpa;
}

static u32 accept(u64 gpa)
{
	u64 status;

	do {
		status = tdcall(MEM_PAGE_ACCEPT, gpa, 0) >> 32;
	} while (status == 0x80000200);			/* busy */
	return status != 0;
}

/* MapGPA as a guest has to call it: asked to retry, it goes on from where the host got to. */
static u32 map(u64 gpa, u64 size)
{
	u64 end = gpa + size, status;

	do {
		status = host(MAP_GPA, gpa, end - gpa, 0, 0, &gpa);
	} while (status == RETRY);
	return status != 0;
}

/* To shared and back: what is written to one side is not on the other, and what was accepted again is zero. */
static u32 convert_there_and_back(u64 base, u32 pages, u64 salt)
{
	u64 end = base + pages * 4096UL;
	u32 bad = map(base | SHARED_BIT, end - base);

	for (u64 p = base; p < end; p += 4096)
		*shared(p) = p ^ salt;
	for (u64 p = base; p < end; p += 4096)
		bad += *shared(p) != (p ^ salt);
	bad += map(base, end - base);
	for (u64 p = base; p < end; p += 4096) {
		bad += accept(p);
		bad += *private(p) != 0;
		*private(p) = ~p ^ salt;
	}
	for (u64 p = base; p < end; p += 4096)
		bad += *private(p) != (~p ^ salt);
	return bad;
}

/* ---- the cases ------------------------------------------------------------------------------ */

static volatile u32 vcpus, started, storm_rounds, storm_done, storm_bad;
/* Set once the orders are read. */
static volatile u32 go;

/* Pages of a block of its own, and single pages of one that all vCPUs work in. */
static void storm(u32 id)
{
	u64 own = STORM_FROM + (1UL + id) * (2 << 20);
	u32 bad = 0;

	while (!storm_rounds)
		asm volatile("pause");
	for (u32 i = 0; i < storm_rounds; i++) {
		bad += convert_there_and_back(own + (i & 7) * 0x10000UL, 16, i);
		for (u32 k = id; k < 16; k += vcpus)
			bad += convert_there_and_back(STORM_FROM + k * 4096UL, 1, i);
	}
	__atomic_add_fetch(&storm_bad, bad, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&storm_done, 1, __ATOMIC_SEQ_CST);
}

static void storm_all(u32 rounds)
{
	storm_rounds = rounds;
	storm(0);
	while (storm_done < vcpus)
		asm volatile("pause");
	tell("bad", storm_bad);
}

static void fatal(u64 code, u64 gpa, const u64 *text)
{
	register u64 r8 asm("r8") = text[5], r9 asm("r9") = text[6], r10 asm("r10") = 0;
	register u64 r11 asm("r11") = REPORT_FATAL_ERROR, r12 asm("r12") = code, r13 asm("r13") = gpa;
	register u64 r14 asm("r14") = text[0], r15 asm("r15") = text[1];
	u64 leaf = VP_VMCALL, passed = 0xffcc;

	asm volatile(".byte 0x66,0x0f,0x01,0xcc"
		     : "+a"(leaf), "+c"(passed), "+r"(r10), "+r"(r11)
		     : "b"(text[2]), "d"(text[7]), "S"(text[4]), "D"(text[3]), "r"(r8), "r"(r9),
		       "r"(r12), "r"(r13), "r"(r14), "r"(r15)
		     : "memory");
	print("went on after a fatal error\n");
}

static const char fatal_text[64] = "no root device\33[2J\nand 42 more words in eight registers......!";

/* The page is full, without a NUL, and begins with what must not reach a terminal. */
static void fatal_page(void)
{
	volatile char *page = (volatile char *)shared(TEXT_PAGE);
	static const char start[] = "page\33]0;owned\7\r\n";

	if (map(TEXT_PAGE | SHARED_BIT, 4096))
		print("MapGPA failed\n");
	for (u32 i = 0; i < 4096; i++)
		page[i] = i < sizeof(start) - 1 ? start[i] : 'x';
	fatal(1UL << 63 | 7, TEXT_PAGE | SHARED_BIT, (const u64 *)fatal_text);
}

static void call4(const char *name, u64 r10, u64 r11, u64 r12, u64 r13, u64 r14)
{
	struct vmcall c = { .r10 = r10, .r11 = r11, .r12 = r12, .r13 = r13, .r14 = r14 };

	vmcall(&c);
	print("call ");
	print(name);
	print(" ");
	print_hex(c.r10);
	print(" ");
	print_hex(c.r11);
	print("\n");
}

static void call(const char *name, u64 r10, u64 r11, u64 r12, u64 r13)
{
	call4(name, r10, r11, r12, r13, 0);
}

static void map_calls(void)
{
	u64 gib = 1UL << 30;

	call("map-outside-private", 0, MAP_GPA, gib, 4096);
	call("map-outside-shared", 0, MAP_GPA, gib | SHARED_BIT, 4096);
	call("map-huge-outside", 0, MAP_GPA, gib | SHARED_BIT, gib);
	call("map-over-the-end", 0, MAP_GPA, 60UL << 20, gib);
	call("map-unaligned", 0, MAP_GPA, CALL_PAGE + 1, 4096);
	call("map-unaligned-size", 0, MAP_GPA, CALL_PAGE, 4097);
	call("map-nothing", 0, MAP_GPA, CALL_PAGE, 0);
	call("map-wrapping", 0, MAP_GPA, ~0xfffUL, 0x2000);
	call("map-across-the-shared-bit", 0, MAP_GPA, SHARED_BIT - 4096, 8192);
	call("map-beyond-the-width", 0, MAP_GPA, 1UL << 50, 4096);
	call("map-mmio-private", 0, MAP_GPA, 0xfec00000, 4096);
	call("hypercall-map-outside", KVM_MAP_GPA_RANGE, gib, 1UL << 40, MAP_ENCRYPTED);
	call("hypercall-map-huge", KVM_MAP_GPA_RANGE, gib, 1UL << 18, 0);
	call("hypercall-map-wrapping", KVM_MAP_GPA_RANGE, 4096, ~0UL, 0);
	call("hypercall-unknown", 0x1234, 1, 2, 3);
}

static void other_calls(void)
{
	call("subfunction-service", 0, 0x10005, 0, 0);
	call("subfunction-unknown", 0, 0x1ffff, ~0UL, ~0UL);
	call("subfunction-all-ones", 0, ~0UL, ~0UL, ~0UL);
	call("subfunction-wbinvd", 0, VMCALL_WBINVD, 0, 0);
	call("io-of-three-bytes", 0, VMCALL_IO, 3, 1);
	call4("mmio-of-private", 0, VMCALL_MMIO, 4, 0, CALL_PAGE);
	call4("mmio-of-ram", 0, VMCALL_MMIO, 4, 0, CALL_PAGE | SHARED_BIT);
	call4("mmio-to-ram", 0, VMCALL_MMIO, 8, 1, CALL_PAGE | SHARED_BIT);
	call4("mmio-out-of-shared", 0, VMCALL_MMIO, 4, 0, (SHARED_BIT << 1) - 1);
	if (map(CALL_PAGE | SHARED_BIT, 4096))
		print("MapGPA failed\n");
	shared(CALL_PAGE)[0] = 1;				/* version 1, 1024 bytes follow */
	shared(CALL_PAGE)[1] = 0;
	shared(CALL_PAGE)[2] = 1024;
	call("quote", 0, GET_QUOTE, CALL_PAGE | SHARED_BIT, 4096);
	call("quote-private", 0, GET_QUOTE, CALL_PAGE, 4096);
	call("quote-nowhere", 0, GET_QUOTE, 1UL << 40 | SHARED_BIT, ~0UL);
	call("notify", 0, SETUP_EVENT_NOTIFY, 0x41, 0);
	call("notify-bad-vector", 0, SETUP_EVENT_NOTIFY, 5, 0);
	call("info-0", 0, GET_TD_VM_CALL_INFO, 0, 0);
	call("info-1", 0, GET_TD_VM_CALL_INFO, 1, 0);
	call("info-2", 0, GET_TD_VM_CALL_INFO, 2, 0);
}

/* Everything that makes the host write a line, again and again. */
static void flood(u32 rounds)
{
	for (u32 i = 0; i < rounds; i++) {
		out(DEBUG_PORT, 1, '#');
		out(DEBUG_PORT, 1, '\n');
		out(DEBUG_PORT, 4, ~0U);
		out(0x600, 1, 0xff);
		in(0x9999, 4);
		host(MAP_GPA, 1UL << 30, 4096, 0, 0, 0);
		host(VMCALL_MMIO, 4, 1, 0xfec00010 | SHARED_BIT, ~0U, 0);
		host(0x10005, i, i, i, i, 0);
	}
	print("flood over\n");
}

/* Waits for a byte on the serial port. */
static void wait(void)
{
	print("ready\n");
	while (!(in(COM1_STATUS, 1) & 1))
		;
	in(COM1, 1);
}

/* ---- orders --------------------------------------------------------------------------------- */

static char orders[64];

static int is(const char *word)
{
	const char *o = orders;

	while (*word && *word == *o)
		word++, o++;
	return !*word && (*o == ' ' || !*o);
}

static u32 number(void)
{
	const char *o = orders;
	u32 n = 0;

	while (*o && *o != ' ')
		o++;
	for (; *o; o++)
		if (*o >= '0' && *o <= '9')
			n = n * 10 + *o - '0';
	return n;
}

static void read_orders(void)
{
	out(FW_CFG_SELECT, 2, FW_CFG_CPUS);
	vcpus = in(FW_CFG_DATA, 1);
	vcpus |= in(FW_CFG_DATA, 1) << 8;
	out(FW_CFG_SELECT, 2, FW_CFG_CMDLINE);
	for (u32 i = 0; i < sizeof(orders) - 1; i++)
		if (!(orders[i] = in(FW_CFG_DATA, 1)))
			break;
}

static void obey(void)
{
	if (is("storm"))
		storm_all(number());
	else if (is("fatal"))
		fatal(42, 0, (const u64 *)fatal_text);
	else if (is("fatal-page"))
		fatal_page();
	else if (is("unaccepted"))
		tell("touched", *private(UNACCEPTED));
	else if (is("rdmsr"))
		tell("read", rdmsr(number()));
	else if (is("map-calls"))
		map_calls();
	else if (is("other-calls"))
		other_calls();
	else if (is("flood"))
		flood(number());
	else if (is("wait"))
		wait();
	else if (is("reset"))
		out(RESET_CONTROL, 1, 6);
	else if (!is("hello"))
		print("FAULT: these orders are not known\n");
}

void case_main(u32 id)
{
	__atomic_add_fetch(&started, 1, __ATOMIC_SEQ_CST);
	if (id) {
		while (!go)
			asm volatile("pause");
		load_idt();
		if (is("storm"))
			storm(id);
		idle();
	}
	load_idt();
	read_orders();
	while (started < vcpus)
		asm volatile("pause");
	go = 1;
	tell("vcpus", started);
	obey();
	/* The memory is as good as before. */
	tell("left", convert_there_and_back(STORM_FROM, 4, 1));
	print("done\n");
	power_off();
}

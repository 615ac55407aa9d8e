// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * What runs inside of the stress TD, on 1 to 4 vCPUs, all of them in step by barriers.
 *
 *   A  all vCPUs accept the same page at once, then write to it: no write may be lost
 *   D  (instead of A, SEPT_VE_DISABLE off) all vCPUs touch the same page at once; the #VE handler accepts it
 *   E  each vCPU converts a few pages of its own to shared and back, again and again: what is written to one side
 *      is not on the other, and what was accepted again is zero
 *   F  the first vCPU converts pages that the others accept all the while (and write, where a touch of a pending
 *      page is #VE). Whatever they are answered, the pages are sound when it is over
 *   B  MapGPA to shared; then interrupts and #VEs whose stack page is not mapped yet: none lost or doubled
 *   C  GetTdVmCallInfo, SetupEventNotifyInterrupt answered by an MSI
 *
 * A timer interrupt comes every 300,000 TSC ticks all the while.
 */
#include "stress.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* At IMAGE + 0xb000; the u32 are the prober's orders, but for the barrier. */
struct variables {
	volatile u32 barrier, vcpus, pages, touch, soak, storms, puppet;
	volatile u64 storm_bad, won, already, busy, lost, other, events_bad;
	volatile u64 race_over;
	volatile u64 timers[MAX_VCPUS], ipis[MAX_VCPUS], ves[MAX_VCPUS];
};

#define V		((struct variables *)(IMAGE + 0xb000UL))
#define TSS(i)		(IMAGE + 0xa400UL + 0x80 * (i))
#define IST(i, k)	(*(volatile u64 *)(TSS(i) + 0x1c + 8 * (k)))
#define STACK(i, k)	(STACKS + (u64)STACK_STRIDE * (i) + 0x1800 + 0x800 * (k))

/* ---- the module and the host ------------------------------------------------------------ */

enum { VP_VMCALL = 0, VP_VEINFO_GET = 3, MEM_PAGE_ACCEPT = 6 };
enum { VMCALL_HLT = 12, VMCALL_IO = 30, VMCALL_WRMSR = 32 };
enum { GET_TD_VM_CALL_INFO = 0x10000, MAP_GPA = 0x10001, SETUP_EVENT_NOTIFY = 0x10004 };

static u64 tdcall(u64 leaf, u64 rcx, u64 *out)
{
	u64 rdx = 0;
	register u64 r8 asm("r8") = 0, r9 asm("r9") = 0, r10 asm("r10") = 0, r11 asm("r11");

	asm volatile(".byte 0x66,0x0f,0x01,0xcc"
		     : "+a"(leaf), "+c"(rcx), "+d"(rdx), "+r"(r8), "+r"(r9), "+r"(r10), "=r"(r11)
		     : : "memory");
	if (out) {
		out[0] = rcx;
		out[1] = rdx;
		out[2] = r8;
		out[3] = r9;
		out[4] = r10;
	}
	return leaf;
}

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
		     : : "memory");
	c->status = r10;
	c->r11 = r11;
}

static u64 host(u64 nr, u64 r12, u64 r13, u64 r14, u64 r15)
{
	struct vmcall c = { .r11 = nr, .r12 = r12, .r13 = r13, .r14 = r14, .r15 = r15 };

	vmcall(&c);
	return c.status;
}

static void out32(u32 port, u32 val)
{
	host(VMCALL_IO, 4, 1, port, val);
}

static void result(u32 which, u64 val)
{
	out32(PORT_RESULT + which, val);
}

static u64 rdtsc(void)
{
	u32 a, d;

	asm volatile("rdtsc" : "=a"(a), "=d"(d));
	return a | (u64)d << 32;
}

static void wrmsr(u32 msr, u64 val)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((u32)val), "d"((u32)(val >> 32)) : "memory");
}

static void pause(void)
{
	asm volatile("pause");
}

/* ---- handlers ---------------------------------------------------------------------------- */

struct frame {
	u64 rip, cs, rflags, rsp, ss;
};

enum { X2APIC_EOI = 0x80b, X2APIC_SPIV = 0x80f, X2APIC_LVTT = 0x832, X2APIC_SELF_IPI = 0x83f };
enum { TSC_DEADLINE = 0x6e0 };

static u32 me(void)
{
	u16 selector;

	asm volatile("str %0" : "=r"(selector));
	return (selector - 0x20) >> 4;
}

static void arm_timer(void)
{
	host(VMCALL_WRMSR, TSC_DEADLINE, rdtsc() + 300000, 0, 0);
}

static void accept(u64 gpa)
{
	for (;;) {
		u64 status = tdcall(MEM_PAGE_ACCEPT, gpa, 0) >> 32;
		volatile u64 *count = status == 0	    ? &V->won :
				      status == 0x00000b0a ? &V->already :
				      status == 0x80000200 ? &V->busy :
							     &V->other;

		__atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
		if (count != &V->busy)
			return;
	}
}

__attribute__((interrupt)) void on_timer(struct frame *f)
{
	V->timers[me()]++;
	wrmsr(X2APIC_EOI, 0);
	arm_timer();
}

__attribute__((interrupt)) void on_ipi(struct frame *f)
{
	V->ipis[me()]++;
	wrmsr(X2APIC_EOI, 0);
}

/* EPT violation (reason 48) on a pending page: accept it. Anything else: skip the instruction. */
__attribute__((interrupt)) void on_ve(struct frame *f)
{
	u64 info[5];

	tdcall(VP_VEINFO_GET, 0, info);
	V->ves[me()]++;
	if ((u32)info[0] == 48)
		accept(info[3] & ~4095UL);
	else
		*(volatile u64 *)&f->rip += (u32)info[4];
}

__attribute__((interrupt)) void on_fault(struct frame *f, u64 error)
{
	out32(PORT_FAULT, f->rip);
	out32(PORT_FAULT + 1, error);
	out32(PORT_STOP, 99);
	for (;;)
		pause();
}

/* ---- the test ------------------------------------------------------------------------------ */

static void barrier(u32 *generation)
{
	*generation += V->vcpus;
	__atomic_add_fetch(&V->barrier, 1, __ATOMIC_SEQ_CST);
	while ((int)(V->barrier - *generation) < 0)
		pause();
}

static void accept_all(u32 id, u32 *gen)
{
	u32 n = V->vcpus;

	for (u32 i = 0; i < V->pages; i++) {
		u64 p = ACCEPT_FROM + i * 4096UL;

		barrier(gen);
		for (u32 d = 0; d < ((id + i) & 3) * 40; d++)	/* who comes first changes */
			pause();
		accept(p);
		__atomic_add_fetch((u64 *)(p + 2048), 1, __ATOMIC_SEQ_CST);
		((volatile u64 *)p)[id * 8] = p ^ id;
		barrier(gen);
		if (id)
			continue;
		for (u32 k = 0; k < n; k++)
			if (((volatile u64 *)p)[k * 8] != (p ^ k))
				V->lost++;
		if (*(volatile u64 *)(p + 2048) != n)
			V->lost++;
	}
}

static void touch_all(u32 id, u32 *gen)
{
	for (u32 i = 0; i < V->pages; i++) {
		u64 p = ACCEPT_FROM + i * 4096UL;

		barrier(gen);
		__atomic_add_fetch((u64 *)p, 1, __ATOMIC_SEQ_CST);
		barrier(gen);
		if (id == 0 && *(volatile u64 *)p != V->vcpus)
			V->lost++;
	}
}

/* GPA as seen through the shared half of the page tables. */
static volatile u64 *shared(u64 gpa)
{
	return (volatile u64 *)((1UL << 30) + gpa);
}

static void conversion_storm(u32 id)
{
	u64 base = STORM_FROM + id * (2UL << 20), size = STORM_PAGES * 4096UL;
	u32 bad = 0;

	for (u32 i = 0; i < V->storms; i++) {
		bad += host(MAP_GPA, base | SHARED_BIT, size, 0, 0) != 0;
		for (u64 p = base; p < base + size; p += 4096)
			*shared(p) = p ^ i;
		for (u64 p = base; p < base + size; p += 4096)
			bad += *shared(p) != (p ^ i);
		bad += host(MAP_GPA, base, size, 0, 0) != 0;
		for (u64 p = base; p < base + size; p += 4096) {
			bad += tdcall(MEM_PAGE_ACCEPT, p, 0) != 0;
			bad += *(volatile u64 *)p != 0;
			*(volatile u64 *)p = ~p ^ i;
		}
		for (u64 p = base; p < base + size; p += 4096)
			bad += *(volatile u64 *)p != (~p ^ i);
	}
	__atomic_add_fetch(&V->storm_bad, bad, __ATOMIC_SEQ_CST);
}

static void accept_against_conversion(u32 id)
{
	u64 end = RACE_FROM + RACE_PAGES * 4096UL;

	while (id && !V->race_over)
		for (u64 p = RACE_FROM; p < end; p += 4096) {
			accept(p);
			if (V->touch)
				*(volatile u64 *)p = p ^ id;
		}
	if (id)
		return;
	for (u32 i = 0; i < V->storms; i++) {
		host(MAP_GPA, RACE_FROM | SHARED_BIT, end - RACE_FROM, 0, 0);
		host(MAP_GPA, RACE_FROM, end - RACE_FROM, 0, 0);
	}
	V->race_over = 1;
}

/* What of the same pages is not as written, once nobody else works in them. */
static u32 check_race(void)
{
	u64 end = RACE_FROM + RACE_PAGES * 4096UL;
	u32 bad = host(MAP_GPA, RACE_FROM, end - RACE_FROM, 0, 0) != 0;

	for (u64 p = RACE_FROM; p < end; p += 4096) {
		accept(p);
		*(volatile u64 *)p = ~p;
	}
	for (u64 p = RACE_FROM; p < end; p += 4096)
		bad += *(volatile u64 *)p != ~p;
	return bad;
}

/* One self IPI that must come exactly once. */
static u32 one_ipi(u32 id)
{
	u64 before = V->ipis[id];

	wrmsr(X2APIC_SELF_IPI, IPI_VECTOR);
	for (u32 k = 0; k < 100000 && V->ipis[id] == before; k++)
		pause();
	return V->ipis[id] != before + 1;
}

/* One CPUID leaf of the hypervisor, which is #VE, exactly once. */
static u32 one_ve(u32 id)
{
	u64 before = V->ves[id];
	u32 a = 0x40000001, b, c = 0, d;

	asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory");
	return V->ves[id] != before + 1;
}

/* Each event finds its stack on a page that the nested page table does not map yet. */
static void events_on_new_stacks(u32 id)
{
	u64 stack = (1UL << 30) + SHARE_FROM + id * (SHARE_SIZE / MAX_VCPUS);
	u32 bad = 0;

	for (u32 i = 0; i < 400; i++) {
		IST(id, 2) = stack + 4096;
		stack += 4096;
		bad += one_ipi(id);
		IST(id, 3) = stack + 4096;
		stack += 4096;
		bad += one_ve(id);
	}
	IST(id, 2) = STACK(id, 2);
	IST(id, 3) = STACK(id, 3);
	for (u32 i = 0; i < V->soak; i++) {
		if (!(i & 7))
			bad += one_ipi(id);
		bad += one_ve(id);
	}
	__atomic_add_fetch(&V->events_bad, bad, __ATOMIC_SEQ_CST);
}

static u64 sum(volatile u64 *of)
{
	u64 s = 0;

	for (u32 i = 0; i < MAX_VCPUS; i++)
		s += of[i];
	return s;
}

static void ask_the_host(void)
{
	struct vmcall c = { .r11 = GET_TD_VM_CALL_INFO, .r12 = 1 };
	u64 before = V->ipis[0];

	result(8, host(GET_TD_VM_CALL_INFO, 0, 0, 0, 0));
	vmcall(&c);
	result(9, c.status);
	result(10, c.r11);
	result(11, host(SETUP_EVENT_NOTIFY, IPI_VECTOR, 0, 0, 0) >> 32);
	for (u64 t = rdtsc(); V->ipis[0] == before && rdtsc() - t < 3000000000UL;)
		pause();
	result(12, V->ipis[0] - before);
}

void puppet(void);

void stress_main(u32 id)
{
	u32 gen = 0;

	if (V->puppet)
		puppet();
	host(VMCALL_WRMSR, X2APIC_SPIV, 0x1ff, 0, 0);
	host(VMCALL_WRMSR, X2APIC_LVTT, 0x40000 | TIMER_VECTOR, 0, 0);
	arm_timer();
	asm volatile("sti");
	barrier(&gen);
	if (V->touch)
		touch_all(id, &gen);
	else
		accept_all(id, &gen);
	barrier(&gen);
	if (id == 0) {
		result(0, V->won);
		result(1, V->already);
		result(2, V->busy);
		result(3, V->lost);
		result(4, V->other);
		result(5, sum(V->ves));
		result(13, host(MAP_GPA, SHARE_FROM | SHARED_BIT, SHARE_SIZE, 0, 0) >> 32);
	}
	barrier(&gen);
	conversion_storm(id);
	barrier(&gen);
	accept_against_conversion(id);
	barrier(&gen);
	if (id == 0)
		result(15, check_race());
	barrier(&gen);
	events_on_new_stacks(id);
	barrier(&gen);
	if (id == 0) {
		result(6, V->events_bad);
		result(14, V->storm_bad);
		result(7, sum(V->timers));
		ask_the_host();
		out32(PORT_STOP, 0);
	}
	for (;;)
		pause();
}

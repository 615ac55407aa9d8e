// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * A TD that turns memory private while a virtio disk reads and writes it. A round sets the disk up, hands it REQUESTS
 * requests with their data in shared pages, converts some of those pages at a moment that varies, accepts them and fills
 * them with a pattern, and looks at all that was promised: the pattern stays, no request ends with an error, what a read
 * brought is what was written or zeros, and the disk asks to be reset only if it was given reason to. It does what it
 * is told on COM1 and answers with a line:
 *
 *	a     accepts and fills REGION                                             ACCEPTED
 *	dN    takes disk N - '0' and writes all of it                              READY-TO-CONVERT
 *	r     runs 64 rounds, then looks at all of REGION                          ROUNDS counts, see `counts`
 *	q     switches the machine off
 */
#include "td.h"

#define RING		(16UL << 20)	/* one page: descriptors, available ring, used ring */
#define HEADERS		(RING + PAGE)	/* one page: headers and status bytes, always shared */
#define REGION		(64UL << 20)
#define REGION_SIZE	(32UL << 20)
#define BLOCK		(2UL << 20)
#define BAR		0x80000000UL
#define NOTIFY		(BAR + 0x3000)
#define DISK_PAGES	2048
#define REQUESTS	16
#define RING_SIZE	64		/* three for each request, and for one more */
#define TIMEOUT		2000000		/* looks */

#define AT(type, gpa)	((volatile type *)(SHARED_ALIAS + (gpa)))
#define DESCRIPTORS	AT(struct descriptor, RING)
#define AVAILABLE	AT(u16, RING + 0x400)
#define USED_INDEX	(*AT(u16, RING + 0x802))
#define USED		AT(struct used, RING + 0x804)
#define HEADER		AT(struct header, HEADERS)
#define STATUS		AT(u8, HEADERS + 0x800)

/* virtio 1.3, 4.1.4.3 and 2.1. */
enum { FEATURE_SELECT = 8, FEATURE = 12, DEVICE_STATUS = 20, QUEUE_SIZE = 24, QUEUE_ENABLE = 28 };
enum { QUEUE_DESCRIPTORS = 32, QUEUE_AVAILABLE = 40, QUEUE_USED = 48 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, FEATURES_OK = 11, DRIVER_OK = 15, NEEDS_RESET = 64 };
enum { F_FLUSH = 1 << 9, VERSION_1_AND_ACCESS_PLATFORM = 3 };
enum { HAS_NEXT = 1, DEVICE_WRITES = 2 };

struct descriptor {
	u64 address;
	u32 length;
	u16 flags, next;
};

struct used {
	u32 id, length;
};

struct header {
	u32 write, reserved;
	u64 sector;
};

/* What a round does with the memory that the disk was given. */
enum what { NOTHING, ALL_AT_ONCE, EACH_BUFFER, SOME_BUFFERS, SOME_PAGES, ALL_THEN_RESET, RING_PAGE, KINDS };

/* Of the disk at hand. */
static struct counts {
	u64 rounds;
	u64 faulted;	/* the disk asked to be reset since a page was private */
	u64 in_time;	/* all requests had ended before the conversion */
	u64 ended;	/* all requests ended although there were conversions */
	u64 reset;	/* the driver reset the disk while it worked */
	u64 ring;	/* the ring was converted, and the disk asked to be reset */
	u64 pages;	/* pages converted under requests */
} counts;

static struct {
	u64 from;		/* of the buffers */
	u64 pages;		/* of one buffer */
	u64 disk[REQUESTS];	/* page of the disk */
	u8 converted[BLOCK / PAGE];
} work;

static u64 random_state;

static u64 random_below(u64 end)
{
	return word(0x5eed, random_state++) % end;
}

static u64 mmio(u64 address, u64 size, int write, u64 value)
{
	struct vmcall c = { .r11 = VMCALL_MMIO, .r12 = size, .r13 = write, .r14 = address | SHARED_BIT, .r15 = value };

	vmcall(&c);
	must(c.status == 0, "MMIO");
	return c.r11;
}

static u32 config(u32 slot, u32 offset)
{
	out(0xcf8, 4, 0x80000000 | slot << 11 | offset);
	return in(0xcfc, 4);
}

/* Gives BAR to disk `number`, and to no other. */
static void take_disk(u32 number)
{
	int found = 0;

	for (u32 slot = 0; slot < 32; slot++) {
		if (config(slot, 0) != 0x10421af4)
			continue;
		config(slot, 4);
		out(0xcfc, 4, 0);
		if (number-- != 0)
			continue;
		config(slot, 0x10);
		out(0xcfc, 4, BAR);
		config(slot, 4);
		out(0xcfc, 4, 6);	/* memory, bus master */
		found = 1;
	}
	must(found, "no disk");
}

static u8 status(void)
{
	return mmio(BAR + DEVICE_STATUS, 1, 0, 0);
}

static void reset(void)
{
	mmio(BAR + DEVICE_STATUS, 1, 1, 0);
	must(status() == 0, "reset");
}

static void start(void)
{
	for (u64 i = 0; i < PAGE / 8; i++)
		AT(u64, RING)[i] = 0;
	mmio(BAR + DEVICE_STATUS, 1, 1, ACKNOWLEDGE);
	mmio(BAR + DEVICE_STATUS, 1, 1, ACKNOWLEDGE | DRIVER);
	mmio(BAR + FEATURE_SELECT, 4, 1, 0);
	mmio(BAR + FEATURE, 4, 1, F_FLUSH);
	mmio(BAR + FEATURE_SELECT, 4, 1, 1);
	mmio(BAR + FEATURE, 4, 1, VERSION_1_AND_ACCESS_PLATFORM);
	mmio(BAR + DEVICE_STATUS, 1, 1, FEATURES_OK);
	mmio(BAR + QUEUE_SIZE, 2, 1, RING_SIZE);
	mmio(BAR + QUEUE_DESCRIPTORS, 4, 1, RING);
	mmio(BAR + QUEUE_AVAILABLE, 4, 1, RING + 0x400);
	mmio(BAR + QUEUE_USED, 4, 1, RING + 0x800);
	mmio(BAR + QUEUE_ENABLE, 2, 1, 1);
	mmio(BAR + DEVICE_STATUS, 1, 1, DRIVER_OK);
	must(status() == DRIVER_OK, "start");
}

static void kick(void)
{
	mmio(NOTIFY, 2, 1, 0);
}

/* ---- patterns ---- */

static u64 on_disk(u64 page)
{
	return 0xd15c000000000000 | page;
}

/* In the buffers of reads beforehand: a disk that answers and brings nothing is found out. */
#define UNREAD		0x0badbadbadbadbad

static u64 in_private(u64 gpa)
{
	return 0x9413a7e000000000 ^ gpa;
}

static void fill(volatile u64 *page, u64 value)
{
	for (u64 i = 0; i < PAGE / 8; i++)
		page[i] = value;
}

/* Each word is `value` or, where that may be, 0. */
static int holds(volatile u64 *page, u64 value, u64 or)
{
	for (u64 i = 0; i < PAGE / 8; i++)
		if (page[i] != value && page[i] != or)
			return 0;
	return 1;
}

static void accept_and_fill(u64 from, u64 pages)
{
	for (u64 p = from; p < from + pages * PAGE; p += PAGE) {
		must(accept(p) == 0, "accept");
		fill((u64 *)p, in_private(p));
	}
}

static void check_private(u64 p)
{
	must(holds((u64 *)p, in_private(p), in_private(p)), "a private page was harmed");
}

/* ---- requests ---- */

static void request(u64 number, int write, u64 gpa)
{
	volatile struct descriptor *d = DESCRIPTORS + 3 * number;
	u64 page = random_below(DISK_PAGES / work.pages) * work.pages;

	work.disk[number % REQUESTS] = page;
	HEADER[number] = (struct header){ .write = write, .sector = page * 8 };
	STATUS[number] = 0xff;
	d[0] = (struct descriptor){ HEADERS + 16 * number, 16, HAS_NEXT, 3 * number + 1 };
	d[1] = (struct descriptor){ gpa, work.pages * PAGE, HAS_NEXT | (write ? 0 : DEVICE_WRITES), 3 * number + 2 };
	d[2] = (struct descriptor){ HEADERS + 0x800 + number, 1, DEVICE_WRITES, 0 };
	AVAILABLE[2 + number] = 3 * number;
}

static u64 buffer(u64 number)
{
	return work.from + number * work.pages * PAGE;
}

static void submit(u64 end)
{
	asm volatile("" : : : "memory");
	AVAILABLE[1] = end;
	kick();
}

/* The status when all requests have ended, or the disk needs a reset. */
static u8 wait(void)
{
	for (u64 i = 0; i < TIMEOUT; i++) {
		if (USED_INDEX == REQUESTS)
			return status();
		if (!(i % 64) && status() & NEEDS_RESET)
			return status();
	}
	must(0, "requests do not end");
	return 0;
}

static void wait_for_fault(const char *what)
{
	for (u64 i = 0; i < TIMEOUT / 64; i++)
		if (status() & NEEDS_RESET)
			return;
	must(0, what);
}

static int any_converted(u64 number)
{
	int any = 0;

	for (u64 i = 0; i < work.pages; i++)
		any |= work.converted[number * work.pages + i];
	return any;
}

/* What the disk has given back so far. */
static void check_ended(void)
{
	u32 seen = 0;
	u16 count = USED_INDEX;

	must(count <= REQUESTS, "used index");
	for (u64 i = 0; i < count; i++) {
		u32 id = USED[i].id, number = id / 3;
		int write;

		must(id % 3 == 0 && number < REQUESTS && !(seen >> number & 1), "used element");
		seen |= 1 << number;
		must(STATUS[number] == 0, "a request failed");
		write = HEADER[number].write;
		must(USED[i].length == (write ? 1 : work.pages * PAGE + 1), "length");
		for (u64 p = 0; !write && !any_converted(number) && p < work.pages; p++)
			must(holds(AT(u64, buffer(number) + p * PAGE), on_disk(work.disk[number] + p), 0),
			     "a read brought what nobody wrote");
	}
}

/* ---- conversions ---- */

static void convert(u64 first, u64 pages)
{
	u64 gpa = work.from + first * PAGE;

	map(gpa, pages * PAGE, 0);
	accept_and_fill(gpa, pages);
	for (u64 i = first; i < first + pages; i++)
		work.converted[i] = 1;
	counts.pages += pages;
}

static void convert_as(enum what what)
{
	u64 all = REQUESTS * work.pages;

	switch (what) {
	case ALL_AT_ONCE:
	case ALL_THEN_RESET:
		convert(0, all);
		break;
	case EACH_BUFFER:
	case SOME_BUFFERS:
		for (u64 i = REQUESTS; i-- > 0;)
			if (what == EACH_BUFFER || random_below(2))
				convert(i * work.pages, work.pages);
		break;
	case SOME_PAGES:
		/* 32 at most, as each is a call. */
		for (u64 i = 0; i < all; i += all / 32 + 1)
			convert(i, 1);
		break;
	default:
		break;
	}
}

/* The ring itself: whatever the disk was doing, it sees that at the next kick at the latest. */
static void convert_ring(void)
{
	map(RING, PAGE, 0);
	accept_and_fill(RING, 1);
	kick();
	wait_for_fault("a private ring is served");
	reset();
	check_private(RING);
	map(RING, PAGE, SHARED_BIT);
	counts.ring++;
}

/* Not at all; for a while; until some requests have ended; until one, a read, is being served. */
static void let_it_work(void)
{
	u64 from = rdtsc(), time = random_below(1 << 21), some = 1 + random_below(REQUESTS / 2);
	volatile u64 *first = AT(u64, buffer(some & ~1));

	switch (random_below(4)) {
	case 1:
		while (rdtsc() - from < time)
			;
		break;
	case 2:
		for (u64 i = 0; i < TIMEOUT && USED_INDEX < some; i++)
			;
		break;
	case 3:
		for (u64 i = 0; i < TIMEOUT && *first == UNREAD; i++)
			;
		break;
	}
}

static void judge(int in_time)
{
	u8 s = wait();
	int any = 0;

	for (u64 i = 0; i < REQUESTS; i++)
		any |= any_converted(i);
	must(s == DRIVER_OK || (any && !in_time && s == (DRIVER_OK | NEEDS_RESET)), "status");
	check_ended();
	if (s & NEEDS_RESET) {
		counts.faulted++;
		return;
	}
	must(USED_INDEX == REQUESTS, "a request is lost");
	counts.in_time += in_time && any;
	counts.ended += !in_time && any;
	for (u64 i = 0; i < REQUESTS; i++) {
		if (!any_converted(i))
			continue;
		/* A new request is refused at once. */
		request(REQUESTS, i & 1, buffer(i));
		submit(REQUESTS + 1);
		wait_for_fault("a request of private memory is served");
		must(USED_INDEX == REQUESTS && STATUS[REQUESTS] == 0xff, "it is answered");
		return;
	}
}

/* What is still shared turns private, too. No I/O is under way any more: this is how everything stays. */
static void take_back(void)
{
	u64 all = REQUESTS * work.pages, end;

	for (u64 i = 0; i < all; i = end) {
		u64 gpa = work.from + i * PAGE;

		for (end = i + 1; end < all && work.converted[end] == work.converted[i]; end++)
			;
		if (!work.converted[i]) {
			map(gpa, (end - i) * PAGE, 0);
			accept_and_fill(gpa, end - i);
		}
	}
	for (u64 i = 0; i < all; i++)
		check_private(work.from + i * PAGE);
}

static void run_round(u64 block, enum what what)
{
	/* With the largest the buffers fill BLOCK, for which the host may use a large page. */
	static const u8 sizes[] = { 1, 2, 4, 8, 8, 8, 16, 32 };
	u64 size;
	int in_time;

	work.pages = sizes[random_below(sizeof(sizes))];
	size = REQUESTS * work.pages * PAGE;
	work.from = block + random_below(BLOCK / size) * size;
	for (u64 i = 0; i < REQUESTS * work.pages; i++)
		work.converted[i] = 0;
	map(work.from, size, SHARED_BIT);
	start();
	for (u64 i = 0; i < REQUESTS; i++) {
		request(i, i & 1, buffer(i));
		for (u64 p = 0; p < work.pages; p++)
			fill(AT(u64, buffer(i) + p * PAGE), i & 1 ? on_disk(work.disk[i] + p) : UNREAD);
	}
	submit(REQUESTS);
	let_it_work();
	if (what == RING_PAGE) {
		convert_ring();
	} else {
		in_time = USED_INDEX == REQUESTS;
		convert_as(what);
		if (what == ALL_THEN_RESET)
			counts.reset++;
		else
			judge(in_time);
		reset();
	}
	take_back();
}

static void write_disk(void)
{
	work.pages = 32;
	work.from = REGION;
	map(REGION, BLOCK, SHARED_BIT);
	for (u64 at = 0; at < DISK_PAGES; at += REQUESTS * work.pages) {
		start();
		for (u64 i = 0; i < REQUESTS; i++) {
			u64 page = at + i * work.pages;

			request(i, 1, buffer(i));
			work.disk[i] = page;
			HEADER[i].sector = page * 8;
			for (u64 p = 0; p < work.pages; p++)
				fill(AT(u64, buffer(i) + p * PAGE), on_disk(page + p));
		}
		submit(REQUESTS);
		must(wait() == DRIVER_OK, "status");
		check_ended();
		reset();
	}
	map(REGION, BLOCK, 0);
	accept_and_fill(REGION, BLOCK / PAGE);
}

static void count(u64 number)
{
	say(" ");
	say_number(number);
}

void td_main(void)
{
	map(RING, 2 * PAGE, SHARED_BIT);
	say("READY\n");
	for (;;) {
		switch (hear()) {
		case 'a':
			accept_and_fill(REGION, REGION_SIZE / PAGE);
			say("ACCEPTED\n");
			break;
		case 'd':
			take_disk(hear() - '0');
			write_disk();
			counts = (struct counts){ 0 };
			say("READY-TO-CONVERT\n");
			break;
		case 'r':
			do
				run_round(REGION + counts.rounds * BLOCK % REGION_SIZE, counts.rounds % KINDS);
			while (++counts.rounds % 64);
			for (u64 p = REGION; p < REGION + REGION_SIZE; p += PAGE)
				check_private(p);
			say("ROUNDS");
			count(counts.rounds);
			count(counts.faulted);
			count(counts.in_time);
			count(counts.ended);
			count(counts.reset);
			count(counts.ring);
			count(counts.pages);
			say("\n");
			break;
		case 'q':
			stop();
		}
	}
}

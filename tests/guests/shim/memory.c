// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * Accepts the memory that the TD HOB calls unaccepted, all vCPUs together: each takes the next piece of 2 MiB until
 * none is left. Also sees to it that what is called added was added.
 */
#include "shim.h"

/* Status of TDG.MEM.PAGE.ACCEPT, upper half (TDX module, "TDCALL status"). */
enum {
	SUCCESS = 0,
	ALREADY_ACCEPTED = 0x00000b0a,
	OPERAND_BUSY = 0x80000200,
	SIZE_MISMATCH = 0xc0000b0b,
};

enum { SIZE_4K = 0, SIZE_2M = 1 };

static u32 next_piece;
static volatile u32 *const work = (u32 *)(MAILBOX + MAILBOX_WORK);
static volatile u32 *const done = (u32 *)(MAILBOX + MAILBOX_DONE);

static u32 accept(u64 gpa, u32 size)
{
	u32 status;

	do {
		status = page_accept(gpa | size) >> 32;
	} while (status == OPERAND_BUSY);
	return status;
}

static void accept_piece(u64 start, u64 end)
{
	if (end - start == LARGE_PAGE) {
		u32 status = accept(start, SIZE_2M);

		if (status == SUCCESS)
			return;
		if (status != SIZE_MISMATCH)
			fail("cannot accept 2 MiB, status", status);
	}
	for (; start < end; start += PAGE) {
		/* One that is there already was added, so it was described wrongly. */
		u32 status = accept(start, SIZE_4K);

		if (status != SUCCESS)
			fail(status == ALREADY_ACCEPTED ? "described as unaccepted but there:" :
				"cannot accept a page, status",
			     status == ALREADY_ACCEPTED ? start : status);
	}
}

/* Finds piece number `piece`, cut at multiples of 2 MiB; 0 if there are not so many. */
static int find_piece(u32 piece, u64 *start, u64 *end)
{
	for (u32 i = 0; i < range_count; i++) {
		u64 first = ranges[i].start / LARGE_PAGE;
		u64 count = (ranges[i].end + LARGE_PAGE - 1) / LARGE_PAGE - first;

		if (ranges[i].kind != UNACCEPTED)
			continue;
		if (piece < count) {
			*start = (first + piece) * LARGE_PAGE;
			*end = *start + LARGE_PAGE;
			if (*start < ranges[i].start)
				*start = ranges[i].start;
			if (*end > ranges[i].end)
				*end = ranges[i].end;
			return 1;
		}
		piece -= count;
	}
	return 0;
}

static void accept_pieces(void)
{
	u64 start, end;

	while (find_piece(__atomic_fetch_add(&next_piece, 1, __ATOMIC_RELAXED), &start, &end))
		accept_piece(start, end);
}

/* Called by every vCPU but the first that has a stack. */
void other_vcpu(void)
{
	while (!*work)
		;
	accept_pieces();
	__atomic_add_fetch(done, 1, __ATOMIC_SEQ_CST);
}

void accept_memory(u32 vcpus)
{
	u32 others = vcpus - 1 < AP_STACKS ? vcpus - 1 : AP_STACKS;

	for (u32 i = 0; i < range_count; i++)
		if (ranges[i].kind == ADDED && accept(ranges[i].start, SIZE_4K) != ALREADY_ACCEPTED)
			fail("described as added but not there:", ranges[i].start);
	__atomic_store_n(work, 1, __ATOMIC_SEQ_CST);
	accept_pieces();
	while (*done != others)
		;
}

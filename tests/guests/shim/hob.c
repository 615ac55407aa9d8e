// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * Reads the TD HOB and checks it: UEFI PI 1.8, volume 3, chapter 5, and what TD-Shim adds (tdx-shim specification,
 * "TD HOB"). The list is the host's word, so nothing of it is believed before it was looked at.
 */
#include "shim.h"

enum { HANDOFF = 1, RESOURCE = 3, GUID_EXTENSION = 4, END = 0xffff };
enum { HEADER_LEN = 8, HANDOFF_LEN = 56, RESOURCE_LEN = 48, GUID_LEN = 24, TABLE_HEADER_LEN = 36 };
enum { HANDOFF_VERSION = 9, RAM_ATTRIBUTES = 7, BZIMAGE = 1 };

/* 6a0c5870-d4ed-44f4-a135-dd238b6f0c8d */
static const u8 acpi_table[16] = {
	0x70, 0x58, 0x0c, 0x6a, 0xed, 0xd4, 0xf4, 0x44, 0xa1, 0x35, 0xdd, 0x23, 0x8b, 0x6f, 0x0c, 0x8d,
};
/* b96fa412-461f-4be3-8c0d-ad805a497ac0 */
static const u8 payload_info[16] = {
	0x12, 0xa4, 0x6f, 0xb9, 0x1f, 0x46, 0xe3, 0x4b, 0x8c, 0x0d, 0xad, 0x80, 0x5a, 0x49, 0x7a, 0xc0,
};

struct range ranges[MAX_RANGES];
u32 range_count;
u64 low_end;
struct table tables[MAX_TABLES];
u32 table_count;
u32 hob_len;
static int payload_infos;

static void read_handoff(const u8 *hob, u32 len)
{
	if (len != HANDOFF_LEN || get32(hob + 8) != HANDOFF_VERSION)
		fail("hand-off block, version", get32(hob + 8));
	if (get64(hob + 16) % PAGE)
		fail("hand-off block, memory top", get64(hob + 16));
}

static void read_resource(const u8 *hob, u32 len)
{
	u64 start = get64(hob + 32), size = get64(hob + 40);
	u32 kind = get32(hob + 24);
	struct range *range = &ranges[range_count];

	if (len != RESOURCE_LEN || get64(hob + 8) || get64(hob + 16))
		fail("resource block, length or owner", len);
	if (kind != ADDED && kind != UNACCEPTED)
		fail("resource block, type", kind);
	if (get32(hob + 28) != RAM_ATTRIBUTES)
		fail("resource block, attributes", get32(hob + 28));
	if (!size || (start | size) % PAGE || start + size < start || start + size > 1UL << 47)
		fail("resource block, memory at", start);
	if (range_count && start < range[-1].end)
		fail("resource block, order at", start);
	if (range_count == MAX_RANGES)
		fail("too many resource blocks", MAX_RANGES);
	*range = (struct range){ start, start + size, kind };
	range_count++;
	if (start + size < LOW_END)
		low_end = start + size;
}

static void read_table(const u8 *table, u32 room)
{
	u32 len = room < TABLE_HEADER_LEN ? 0 : get32(table + 4);
	u8 sum = 0;

	/* The block is padded to a multiple of 8 bytes. */
	if (len < TABLE_HEADER_LEN || len > room || room - len > 7)
		fail("ACPI table, length", len);
	for (u32 i = 0; i < len; i++)
		sum += table[i];
	if (sum)
		fail("ACPI table, checksum of", get32(table));
	if (table_count == MAX_TABLES)
		fail("too many ACPI tables", MAX_TABLES);
	tables[table_count++] = (struct table){ table, len };
}

static void read_extension(const u8 *hob, u32 len)
{
	if (len < GUID_LEN)
		fail("extension block, length", len);
	if (same(hob + 8, acpi_table, 16)) {
		read_table(hob + GUID_LEN, len - GUID_LEN);
	} else if (same(hob + 8, payload_info, 16)) {
		/* Type, a reserved word, entry; a bzImage has its entry in its header. */
		if (len != GUID_LEN + 16 || get32(hob + 24) != BZIMAGE || get32(hob + 28))
			fail("payload block, type", get32(hob + 24));
		payload_infos++;
	} else {
		fail("extension block, GUID", get64(hob + 8));
	}
}

/* The sections that hold data were added, so the list has to say that they are usable as they are. */
static void check_added(u64 start, u64 size)
{
	for (u32 i = 0; i < range_count; i++)
		if (ranges[i].kind == ADDED && ranges[i].start <= start && start < ranges[i].end) {
			if (start + size <= ranges[i].end)
				return;
			size -= ranges[i].end - start;
			start = ranges[i].end;
		}
	fail("not described as added: memory at", start);
}

void read_hobs(void)
{
	const u8 *list = (const u8 *)TD_HOB, *hob = list;
	u32 kind = 0;

	while (kind != END) {
		u32 at = hob - list, len;

		if (at + HEADER_LEN > TD_HOB_SIZE)
			fail("the list has no end within", TD_HOB_SIZE);
		kind = get32(hob) & 0xffff;
		len = get32(hob) >> 16;
		if (len < HEADER_LEN || len % 8 || len > TD_HOB_SIZE - at || get32(hob + 4))
			fail("malformed block at", at);
		if (!at != (kind == HANDOFF))
			fail("hand-off block out of place at", at);
		switch (kind) {
		case HANDOFF:
			read_handoff(hob, len);
			break;
		case RESOURCE:
			read_resource(hob, len);
			break;
		case GUID_EXTENSION:
			read_extension(hob, len);
			break;
		case END:
			break;
		default:
			fail("block type", kind);
		}
		hob += len;
	}
	hob_len = hob - list;
	if (get64(list + 48) != (u64)hob)
		fail("the hand-off block ends the list at", get64(list + 48));
	for (u32 i = hob_len; i < TD_HOB_SIZE; i++)
		if (list[i])
			fail("data after the list at", i);
	if (payload_infos != 1)
		fail("payload blocks:", payload_infos);
	check_added(TD_HOB, TD_HOB_SIZE);
	check_added(PARAMETERS, PARAMETERS_SIZE);
	check_added(PAYLOAD, PAYLOAD_SIZE);
}

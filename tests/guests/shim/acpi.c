// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * ACPI: the VMM's tables as they are, but for the MADT, to which the mailbox is added, and the 32-bit pointer to the
 * DSDT in the FADT, which is all that TD-Shim sets there; then the CCEL, the XSDT and the root pointer.
 */
#include "shim.h"

enum { CHECKSUM = 9, HEADER_LEN = 36, FADT_DSDT = 40, FADT_X_DSDT = 140 };
enum { MADT_ENTRIES = 44, LOCAL_APIC = 0, LOCAL_X2APIC = 9, MULTIPROCESSOR_WAKEUP = 16, ENABLED = 1 };
enum { CCEL_LEN = 56, RSDP_LEN = 36 };

#define SIGNATURE(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)

static u8 *place, *place_end;

/* The next free memory, aligned as tables should be. */
static u8 *take(u32 len)
{
	u8 *at = place;

	if (len > (u64)(place_end - place))
		fail("no room for ACPI tables of", len);
	place += (len + 63UL) & ~63UL;
	return at;
}

static void seal(u8 *bytes, u32 len, u32 checksum)
{
	u8 sum = 0;

	bytes[checksum] = 0;
	for (u32 i = 0; i < len; i++)
		sum += bytes[i];
	bytes[checksum] = -sum;
}

static u8 *make(u32 signature, u32 len, u8 revision)
{
	u8 *table = take(len);

	fill(table, 0, len);
	put32(table, signature);
	put32(table + 4, len);
	table[8] = revision;
	copy(table + 10, "TDVMM TESTSHIM", 14);
	return table;
}

/* The processors that the table names; each has to be one that exists. */
static u32 processors(const u8 *madt, u32 len)
{
	u32 count = 0, at = MADT_ENTRIES, id = 0, flags = 0;

	for (; at + 2 <= len; at += madt[at + 1]) {
		if (madt[at + 1] < 2 || madt[at + 1] > len - at)
			fail("MADT, entry at", at);
		if (madt[at] == MULTIPROCESSOR_WAKEUP)
			fail("MADT, the VMM has a mailbox at", get64(madt + at + 8));
		if (madt[at] == LOCAL_APIC) {
			id = madt[at + 3];
			flags = get32(madt + at + 4);
		} else if (madt[at] == LOCAL_X2APIC) {
			id = get32(madt + at + 4);
			flags = get32(madt + at + 8);
		} else {
			continue;
		}
		if (id != count || flags != ENABLED)
			fail("MADT, processor with id", id);
		count++;
	}
	return count;
}

static u8 *install_madt(const struct table *given, u64 os_mailbox, u32 vcpus)
{
	u8 *madt = take(given->len + 16), *entry = madt + given->len;

	if (processors(given->bytes, given->len) != vcpus)
		fail("MADT, not the vCPUs of this TD:", vcpus);
	copy(madt, given->bytes, given->len);
	fill(entry, 0, 16);
	entry[0] = MULTIPROCESSOR_WAKEUP;
	entry[1] = 16;
	put64(entry + 8, os_mailbox);
	put32(madt + 4, given->len + 16);
	seal(madt, given->len + 16, CHECKSUM);
	return madt;
}

static u8 *ccel(u64 event_log)
{
	u8 *table = make(SIGNATURE('C', 'C', 'E', 'L'), CCEL_LEN, 1);

	table[36] = 2;			/* TDX */
	put64(table + 40, EVENT_LOG_SIZE);
	put64(table + 48, event_log);
	seal(table, CCEL_LEN, CHECKSUM);
	return table;
}

static u64 root_pointer(u8 *xsdt)
{
	u8 *rsdp = take(RSDP_LEN);

	fill(rsdp, 0, RSDP_LEN);
	copy(rsdp, "RSD PTR ", 8);
	copy(rsdp + 9, "TDVMM ", 6);
	rsdp[15] = 2;
	rsdp[20] = RSDP_LEN;
	put64(rsdp + 24, (u64)xsdt);
	seal(rsdp, 20, 8);
	seal(rsdp, RSDP_LEN, 32);
	return (u64)rsdp;
}

/* Gives the address of the root pointer. */
u64 install_tables(u64 at, u64 os_mailbox, u64 event_log, u32 vcpus)
{
	u8 *fadt = 0, *dsdt = 0, *madt = 0, *others[MAX_TABLES], *xsdt, *entry;
	u32 fadt_len = 0, count = 0;

	place = (u8 *)at;
	place_end = place + ACPI_SIZE;
	for (u32 i = 0; i < table_count; i++) {
		u32 signature = get32(tables[i].bytes);
		u8 *table;

		if (signature == SIGNATURE('A', 'P', 'I', 'C')) {
			if (madt)
				fail("a second MADT at", i);
			madt = install_madt(&tables[i], os_mailbox, vcpus);
			continue;
		}
		table = take(tables[i].len);
		copy(table, tables[i].bytes, tables[i].len);
		if (signature == SIGNATURE('F', 'A', 'C', 'P')) {
			fadt = table;
			fadt_len = tables[i].len;
		} else if (signature == SIGNATURE('D', 'S', 'D', 'T')) {
			dsdt = table;
		} else {
			others[count++] = table;
		}
	}
	if (!fadt || !dsdt || !madt)
		fail("no FADT, DSDT or MADT among tables:", table_count);
	/* A pointer that TD-Shim does not set leads nowhere, and Linux prefers this one. */
	if (fadt_len >= FADT_X_DSDT + 8 && get64(fadt + FADT_X_DSDT))
		fail("FADT, X_DSDT is set:", get64(fadt + FADT_X_DSDT));
	put32(fadt + FADT_DSDT, (u32)(u64)dsdt);
	seal(fadt, fadt_len, CHECKSUM);

	xsdt = make(SIGNATURE('X', 'S', 'D', 'T'), HEADER_LEN + 8 * (count + 3), 1);
	entry = xsdt + HEADER_LEN;
	put64(entry, (u64)fadt);
	put64(entry + 8, (u64)madt);
	for (u32 i = 0; i < count; i++)
		put64(entry + 16 + 8 * i, (u64)others[i]);
	put64(entry + 16 + 8 * count, (u64)ccel(event_log));
	seal(xsdt, HEADER_LEN + 8 * (count + 3), CHECKSUM);
	return root_pointer(xsdt);
}

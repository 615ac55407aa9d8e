// SPDX-License-Identifier: GPL-2.0
/*
 * The witness: what a TD was, told to the host when it ends, so that a guest without
 * user space can be checked as well.
 *
 *   /sys/kernel/debug/tdx_emul/ended   one JSON line per ended TD, oldest first, the
 *                                      last 64; writing anything empties it
 *   /sys/kernel/debug/tdx_emul/state   one JSON line: key ids in use and in total
 *
 * Departs: no host can see this of a real TD.
 */
#include <linux/debugfs.h>
#include <linux/seq_file.h>
#include "tdxe.h"

#define KEPT	64
#define LINE	1536

static struct dentry *dir;
static DEFINE_MUTEX(lock);		/* lines, ended */
static char (*lines)[LINE];
static u64 ended;			/* TDs since the module was loaded; next line is ended % KEPT */
static u64 first;			/* oldest line that is still shown */

static const char *const state_names[] = {
	[TD_NEW] = "new", [TD_INITIALIZED] = "initialized", [TD_RUNNABLE] = "runnable",
};

#define COUNT(name)	(u64)atomic64_read(&td->counts.name)

static void write_line(struct kvm *kvm, char *line, u64 number)
{
	struct tdxe_vm *td = to_td(kvm);
	int n, i;

	n = scnprintf(line, LINE,
		"{\"td\":%llu,\"state\":\"%s\",\"end\":\"%s\",\"vcpus\":%d,\"attributes\":\"0x%llx\","
		"\"xfam\":\"0x%llx\",\"mrtd\":\"%*phN\"",
		number, state_names[td->state], td->end ?: "", atomic_read(&td->nr_vcpus),
		td->attributes, td->xfam, 48, td->mrtd);
	for (i = 0; i < 4; i++)
		n += scnprintf(line + n, LINE - n, ",\"rtmr%d\":\"%*phN\"", i, 48, td->rtmr[i]);
	n += scnprintf(line + n, LINE - n, ",\"mrconfigid\":\"%*phN\"", 48, td->mrconfigid);
	n += scnprintf(line + n, LINE - n, ",\"mrowner\":\"%*phN\"", 48, td->mrowner);
	n += scnprintf(line + n, LINE - n, ",\"mrownerconfig\":\"%*phN\"", 48, td->mrownerconfig);
	scnprintf(line + n, LINE - n,
		",\"pages\":{\"added\":%llu,\"extended\":%llu,\"augmented\":%llu,\"accepted\":%llu,"
		"\"converted\":%llu,\"removed\":%llu,\"accept_busy\":%llu},\"exits\":{\"map_gpa\":%llu,\"ve\":%llu}}",
		COUNT(added), COUNT(extended), COUNT(augmented), COUNT(accepted),
		COUNT(converted), COUNT(removed), COUNT(busy), COUNT(map_gpa), COUNT(ve));
}

/* Called when a TD's VM is destroyed, with all vCPUs gone. */
void tdxe_witness_td(struct kvm *kvm)
{
	if (!lines || to_td(kvm)->state == TD_NEW)
		return;		/* a VM that never became a TD */
	guard(mutex)(&lock);
	write_line(kvm, lines[ended % KEPT], ended + 1);
	ended++;
	if (ended - first > KEPT)
		first = ended - KEPT;
}

static int ended_show(struct seq_file *m, void *v)
{
	u64 i;

	guard(mutex)(&lock);
	for (i = first; i < ended; i++)
		seq_printf(m, "%s\n", lines[i % KEPT]);
	return 0;
}

static int ended_open(struct inode *inode, struct file *file)
{
	return single_open(file, ended_show, NULL);
}

static ssize_t ended_write(struct file *file, const char __user *buf, size_t n, loff_t *at)
{
	guard(mutex)(&lock);
	first = ended;
	return n;
}

static const struct file_operations ended_fops = {
	.owner = THIS_MODULE,
	.open = ended_open,
	.read = seq_read,
	.write = ended_write,
	.llseek = seq_lseek,
	.release = single_release,
};

static int state_show(struct seq_file *m, void *v)
{
	guard(mutex)(&lock);
	seq_printf(m, "{\"key_ids\":%u,\"key_ids_used\":%d,\"ended\":%llu}\n",
		   tdxe.key_ids, tdxe_key_ids_used(), ended);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

void tdxe_witness_setup(void)
{
	lines = kvzalloc(sizeof(*lines) * KEPT, GFP_KERNEL);
	if (!lines)
		return;		/* the TDs work without it */
	dir = debugfs_create_dir("tdx_emul", NULL);
	debugfs_create_file("ended", 0600, dir, NULL, &ended_fops);
	debugfs_create_file("state", 0400, dir, NULL, &state_fops);
}

void tdxe_witness_teardown(void)
{
	debugfs_remove_recursive(dir);
	kvfree(lines);
	lines = NULL;
}

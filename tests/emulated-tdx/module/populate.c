// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_TDX_INIT_MEM_REGION: pages of the initial image, each added (TDH.MEM.PAGE.ADD)
 * and, if asked, measured (16 times TDH.MR.EXTEND), page by page.
 *
 * KVM: tdx_vcpu_init_mem_region(), tdx_gmem_post_populate(). The struct is always
 * written back with what is left, so that an interrupted call can go on.
 */
#include "tdxe.h"

struct add_arg {
	struct kvm_vcpu *vcpu;
	bool measure;
};

/* Fault injection: 0, or what the call is to end with before the next page. */
static int injected_failure(struct tdxe_vm *td)
{
	uint every = READ_ONCE(tdxe.fail_every);

	if (!every || ++td->tried_pages % every)
		return 0;
	return -(int)(READ_ONCE(tdxe.fail_errno) ?: EAGAIN);
}

/* Called by KVM with the page of guest_memfd and a pinned source page. */
static int post_populate(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, struct page *src, void *opaque)
{
	struct tdxe_vm *td = to_td(kvm);
	struct add_arg *a = opaque;
	int r;

	if (!src)
		return -EOPNOTSUPP;
	td->add_src = src;
	r = kvm_tdp_mmu_map_private_pfn(a->vcpu, gfn, pfn);
	td->add_src = NULL;
	if (r)
		return r;
	atomic64_inc(&td->counts.added);
	if (a->measure) {
		tdxe_mr_extend(td, gfn_to_gpa(gfn), __va(PFN_PHYS(pfn)));
		atomic64_inc(&td->counts.extended);
	}
	return 0;
}

int tdxe_init_mem_region(struct kvm_vcpu *vcpu, struct kvm_tdx_cmd *cmd)
{
	struct tdxe_vm *td = to_td(vcpu->kvm);
	struct kvm_tdx_init_mem_region m;
	struct add_arg a = { .vcpu = vcpu, .measure = cmd->flags & KVM_TDX_MEASURE_MEMORY_REGION };
	long n;
	int r = 0;

	if (!to_tv(vcpu)->inited || (cmd->flags & ~KVM_TDX_MEASURE_MEMORY_REGION))
		return -EINVAL;
	if (copy_from_user(&m, u64_to_user_ptr(cmd->data), sizeof(m)))
		return -EFAULT;
	if (!PAGE_ALIGNED(m.source_addr) || !m.source_addr || !PAGE_ALIGNED(m.gpa) || !m.nr_pages ||
	    m.gpa + (m.nr_pages << PAGE_SHIFT) <= m.gpa || (m.gpa & TDXE_SHARED) ||
	    ((m.gpa + (m.nr_pages << PAGE_SHIFT) - 1) & TDXE_SHARED))
		return -EINVAL;

	while (m.nr_pages) {
		if (signal_pending(current)) {
			r = -EINTR;
			break;
		}
		r = injected_failure(td);
		if (r)
			break;
		n = kvm_gmem_populate(vcpu->kvm, gpa_to_gfn(m.gpa), u64_to_user_ptr(m.source_addr),
				      1, false, post_populate, &a);
		if (n != 1) {
			r = n < 0 ? n : -EIO;
			break;
		}
		m.source_addr += PAGE_SIZE;
		m.gpa += PAGE_SIZE;
		m.nr_pages--;
		cond_resched();
	}
	if (copy_to_user(u64_to_user_ptr(cmd->data), &m, sizeof(m)))
		r = -EFAULT;
	return r;
}

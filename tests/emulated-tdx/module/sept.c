// SPDX-License-Identifier: GPL-2.0
/*
 * Secure EPT of an emulated TD.
 *
 * KVM's TDP MMU keeps, for VM type 5, a "mirror" page table for private memory
 * and hands every change to the vendor module (set_external_spte()), which is
 * where a real host issues SEAMCALLs.  Here the external table is an ordinary
 * NPT tree made of the sp->external_spt pages.  The CPU has one nested CR3 only,
 * so both halves share the top-level page of KVM's direct root: with a 4-level
 * table and GPAW 48, entries 256..511 (GPA bit 47 set) belong to KVM's shared
 * mappings and entries 0..255 are filled in from td->sept_root.  KVM ignores the
 * foreign entries since they lack its software-present bit (bit 11).
 *
 * Leaf states, and what moves a page between them:
 *
 *	state    entry                     to MAPPED by      to PENDING by   to FREE by
 *	FREE     0                         PAGE.ADD          PAGE.AUG        -
 *	PENDING  not present, bit 9        -                 -               removal
 *	BUSY     PENDING with bit 10       end of ACCEPT     -               removal
 *	MAPPED   present                   -                 -               removal
 *
 * PENDING becomes BUSY when a vCPU starts to accept the page. PAGE.ADD is for the
 * time before FINALIZE, PAGE.AUG for the time after; removal is a conversion to
 * shared, a punched hole or a deleted slot.
 * Departs: a touch of a BUSY page by another vCPU is retried; a real TD gets #VE or
 * dies.
 */
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "tdxe.h"

#define E_PRESENT	0x67ULL		/* P W U A D */
#define E_PENDING	BIT_ULL(9)
#define E_BUSY		BIT_ULL(10)
#define E_PFN		GENMASK_ULL(51, 12)

static inline u64 *e_child(u64 e)
{
	return __va(e & E_PFN);
}

static inline int e_index(gfn_t gfn, int level)
{
	return (gfn >> ((level - 1) * 9)) & 511;
}

int tdxe_sept_init(struct kvm *kvm)
{
	to_td(kvm)->sept_root = (u64 *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	return to_td(kvm)->sept_root ? 0 : -ENOMEM;
}

void tdxe_sept_destroy(struct kvm *kvm)
{
	free_page((unsigned long)to_td(kvm)->sept_root);
	to_td(kvm)->sept_root = NULL;
}

/* Address of the entry for @gfn in the table of @level, or NULL. */
static u64 *sept_entry(struct kvm *kvm, gfn_t gfn, int level)
{
	u64 *pt = to_td(kvm)->sept_root;
	int l;

	if (!pt || gfn_to_gpa(gfn) >= TDXE_SHARED)
		return NULL;
	for (l = 4; l > level; l--) {
		u64 e = READ_ONCE(pt[e_index(gfn, l)]);

		if (!(e & 1))
			return NULL;
		pt = e_child(e);
	}
	return &pt[e_index(gfn, level)];
}

/*
 * Is a page that goes one that is converted? Attributes change under slots_lock, holes are
 * punched without it. A slot is deleted and a guest_memfd is closed under it too, but then
 * the slot has no file any more. A guess: another thread may hold the lock.
 */
static bool is_conversion(struct kvm *kvm, gfn_t gfn)
{
	int idx = srcu_read_lock(&kvm->srcu);
	struct kvm_memory_slot *slot = gfn_to_memslot(kvm, gfn);
	bool bound = slot && READ_ONCE(slot->gmem.file);

	srcu_read_unlock(&kvm->srcu, idx);
	return bound && mutex_is_locked(&kvm->slots_lock);
}

int tdxe_set_external_spte(struct kvm *kvm, gfn_t gfn, u64 old_spte,
			   u64 new_spte, enum pg_level level)
{
	u64 *e = sept_entry(kvm, gfn, level);

	if (KVM_BUG_ON(!e, kvm))
		return -EIO;

	if (is_shadow_present_pte(old_spte)) {
		/* Block, track and remove: content is lost for the TD. */
		if (KVM_BUG_ON(level != PG_LEVEL_4K, kvm))
			return -EIO;
		atomic64_inc(&to_td(kvm)->counts.removed);
		if (is_conversion(kvm, gfn))
			atomic64_inc(&to_td(kvm)->counts.converted);
		WRITE_ONCE(*e, 0);
		kvm_flush_remote_tlbs(kvm);
		return 0;
	}

	if (!is_last_spte(new_spte, level)) {
		struct kvm_mmu_page *sp = spte_to_child_sp(new_spte);

		if (KVM_BUG_ON(!sp->external_spt, kvm))
			return -EIO;
		clear_page(sp->external_spt);
		WRITE_ONCE(*e, __pa(sp->external_spt) | E_PRESENT);
		return 0;
	}

	if (KVM_BUG_ON(level != PG_LEVEL_4K, kvm))
		return -EIO;

	/* Pairs with the barrier after FINALIZE in tdxe_vm_ioctl(). */
	smp_rmb();
	if (to_td(kvm)->state != TD_RUNNABLE) {
		/* PAGE.ADD is possible only from INIT_MEM_REGION. */
		if (KVM_BUG_ON(!to_td(kvm)->add_src, kvm))
			return -EIO;
		copy_page(__va(PFN_PHYS(spte_to_pfn(new_spte))),
			  page_address(to_td(kvm)->add_src));
		tdxe_mr_page_add(to_td(kvm), gfn_to_gpa(gfn));
		WRITE_ONCE(*e, PFN_PHYS(spte_to_pfn(new_spte)) | E_PRESENT);
	} else {
		WRITE_ONCE(*e, PFN_PHYS(spte_to_pfn(new_spte)) | E_PENDING);
		atomic64_inc(&to_td(kvm)->counts.augmented);
	}
	return 0;
}

void tdxe_free_external_spt(struct kvm *kvm, struct kvm_mmu_page *sp)
{
	free_page((unsigned long)sp->external_spt);
	sp->external_spt = NULL;
}

/* Publish the private half in the root page the CPU uses. */
void tdxe_sept_sync_root(struct kvm *kvm, hpa_t root)
{
	u64 *src = to_td(kvm)->sept_root, *dst;
	int i;

	if (!VALID_PAGE(root) || !src)
		return;
	dst = __va(root);
	for (i = 0; i < 256; i++)
		if (READ_ONCE(dst[i]) != READ_ONCE(src[i]))
			WRITE_ONCE(dst[i], READ_ONCE(src[i]));
}

enum tdxe_sept_state tdxe_sept_state(struct kvm *kvm, gfn_t gfn)
{
	u64 *e, v;

	guard(read_lock)(&kvm->mmu_lock);
	e = sept_entry(kvm, gfn, PG_LEVEL_4K);
	v = e ? READ_ONCE(*e) : 0;
	return v & 1 ? SEPT_MAPPED : v & E_BUSY ? SEPT_BUSY : v & E_PENDING ? SEPT_PENDING : SEPT_FREE;
}

/* The raw entry (for dumps). */
u64 tdxe_sept_raw(struct kvm *kvm, gfn_t gfn)
{
	u64 *e;

	guard(read_lock)(&kvm->mmu_lock);
	e = sept_entry(kvm, gfn, PG_LEVEL_4K);
	return e ? READ_ONCE(*e) : ~0ULL;
}

/* Accept one page if it is pending; returns the state found. */
enum tdxe_sept_state tdxe_sept_accept(struct kvm *kvm, gfn_t gfn)
{
	u64 *e, v;

	guard(read_lock)(&kvm->mmu_lock);
	e = sept_entry(kvm, gfn, PG_LEVEL_4K);
	v = e ? READ_ONCE(*e) : 0;
	if (v & 1)
		return SEPT_MAPPED;
	if (!(v & E_PENDING))
		return SEPT_FREE;
	if (v & E_BUSY)
		return SEPT_BUSY;
	/*
	 * The page is cleared while the entry is busy, so that a second vCPU that
	 * accepts the same page cannot wipe what the first one has written since.
	 * Removal needs mmu_lock for writing, so nobody else changes a busy entry.
	 */
	if (!try_cmpxchg64(e, &v, v | E_BUSY))
		return v & 1 ? SEPT_MAPPED : SEPT_BUSY;
	clear_page(e_child(v));
	smp_store_release(e, (v & E_PFN) | E_PRESENT);
	atomic64_inc(&to_td(kvm)->counts.accepted);
	return SEPT_PENDING;
}

/* Access guest memory by GPA, honouring the shared bit. */
int tdxe_gpa_rw(struct kvm *kvm, gpa_t gpa, void *buf, size_t len, bool write)
{
	if (gpa & TDXE_SHARED)
		return write ? kvm_write_guest(kvm, gpa & ~TDXE_SHARED, buf, len) :
			       kvm_read_guest(kvm, gpa & ~TDXE_SHARED, buf, len);

	while (len) {
		size_t n = min_t(size_t, len, PAGE_SIZE - offset_in_page(gpa));
		u64 *e;

		guard(read_lock)(&kvm->mmu_lock);
		e = sept_entry(kvm, gpa_to_gfn(gpa), PG_LEVEL_4K);
		if (!e || !(READ_ONCE(*e) & 1))
			return -EFAULT;
		if (write)
			memcpy((void *)e_child(*e) + offset_in_page(gpa), buf, n);
		else
			memcpy(buf, (void *)e_child(*e) + offset_in_page(gpa), n);
		gpa += n;
		buf += n;
		len -= n;
	}
	return 0;
}

/* Let KVM map a private page (PAGE.AUG), > 0 means resume. */
int tdxe_private_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error_code)
{
	int r = kvm_mmu_page_fault(vcpu, gpa, error_code | PFERR_PRIVATE_ACCESS, NULL, 0);

	tdxe_sept_sync_root(vcpu->kvm, vcpu->arch.mmu->root.hpa);
	return r;
}

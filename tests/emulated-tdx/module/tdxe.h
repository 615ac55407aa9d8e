/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Emulated Intel TDX for kvm-amd: a TEST FIXTURE WITHOUT ANY SECURITY.
 *
 * Presents the KVM TDX user ABI (VM type 5) on a machine that has SVM and nested
 * paging, and plays the part of the TDX module towards the guest.
 *
 *   ops.c          which of kvm-amd's calls are replaced, and when
 *   params.c       module parameters, key ids
 *   lifecycle.c    a TD's VM and vCPUs from creation to destruction
 *   launch.c       KVM_MEMORY_ENCRYPT_OP: the table of sub-commands and states
 *   populate.c     KVM_TDX_INIT_MEM_REGION
 *   vcpu_start.c   the registers a vCPU starts with
 *   sept.c         "secure EPT": the private half of the nested page table
 *   cpuid.c        configurable CPUID bits, the TD's CPUID table
 *   insn.c         reading the guest's instructions
 *   exit.c         SVM exits of a TD
 *   msr.c, cr.c    tables of what MSR and control register accesses do
 *   ve.c           virtualization exceptions
 *   tdcall.c       TDCALL leaves
 *   metadata.c     TDG.VM.RD, TDG.VM.WR, TDG.SYS.RD
 *   measure.c      MRTD, RTMRs, TDREPORT
 *   tdvmcall.c     TDG.VP.VMCALL: what KVM answers itself
 *   userexit.c     TDG.VP.VMCALL: what goes to user space
 *   witness.c      one JSON line per ended TD, in debugfs
 *   dump.c         last exits of a TD that died
 *   compat.h       what differs between kernel series
 *
 * "module" below is Intel's TDX module, of which version 1.5.01 was read for
 * facts (repository intel/tdx-module, branch tdx_1.5, commit 72d8cff); "KVM" is
 * Linux 7.3 arch/x86/kvm/vmx/tdx.c. A comment that begins with "Departs:" tells
 * where this emulation knowingly does something else.
 */
#ifndef __TDXE_H
#define __TDXE_H

#include <linux/kvm_host.h>
#include <linux/xarray.h>
#include <crypto/sha2.h>
#include <asm/cpuid/api.h>

#include "svm/svm.h"
#include "x86.h"
#include "mmu.h"
#include "regs.h"
#include "lapic.h"
#include "cpuid.h"
#include "irq.h"

#undef pr_fmt
#define pr_fmt(fmt) "tdx_emul: " fmt

/* Guest physical address width. 52 would need a five-level nested page table. */
#define TDXE_GPAW		48
#define TDXE_SHARED		BIT_ULL(TDXE_GPAW - 1)
#define TDXE_VE_VECTOR		20

/* TD attributes (module: td_param_attributes) and TD_CTLS bits known here. */
#define TDXE_ATTR_SEPT_VE_DIS	BIT_ULL(28)
#define TDXE_CTL_PENDING_VE_DIS	BIT_ULL(0)
#define TDXE_CTL_TOPOLOGY	BIT_ULL(1)

/*
 * Completion status codes: the upper half; the lower half names the operand.
 * Checked against the module's include/auto_gen/tdx_error_codes_defs.h (names as there,
 * without TDX_E_): 1.5.01, commit 72d8cff.
 */
#define TDX_E_OPERAND_INVALID	0xC000010000000000ULL
#define TDX_E_OPERAND_BUSY	0x8000020000000000ULL
#define TDX_E_NO_VCPUS		0xC000060900000000ULL
#define TDX_E_NO_VE_INFO	0xC000070400000000ULL	/* NO_VALID_VE_INFO */
#define TDX_E_ALREADY_ACCEPTED	0x00000B0A00000000ULL	/* PAGE_ALREADY_ACCEPTED */
#define TDX_E_SIZE_MISMATCH	0xC0000B0B00000000ULL	/* PAGE_SIZE_MISMATCH */
#define TDX_E_FIELD_ID		0xC0000C0000000000ULL	/* METADATA_FIELD_ID_INCORRECT */
#define TDX_E_FIELD_VALUE	0xC0000C0300000000ULL	/* METADATA_FIELD_VALUE_NOT_VALID */
#define TDX_E_FIRST_FIELD	0x00000C0B00000000ULL	/* METADATA_FIRST_FIELD_ID_IN_CONTEXT */
#define TDX_E_INVALID_MAC	0xC000100100000000ULL	/* INVALID_REPORTMACSTRUCT */

/* Operand ids: OPERAND_ID_... of the same file. */
enum {
	OP_RAX = 0, OP_RCX = 1, OP_RDX = 2, OP_R8 = 8,
	OP_CPUID_CONFIG = 69, OP_TSC_FREQUENCY = 70,
};

/*
 * A TD's life, as KVM sees it (KVM: enum kvm_tdx_state). Only launch.c moves it,
 * only forward; a second life needs a second VM.
 *
 *	TD_NEW --INIT_VM--> TD_INITIALIZED --FINALIZE_VM--> TD_RUNNABLE
 */
enum tdxe_td_state { TD_NEW, TD_INITIALIZED, TD_RUNNABLE };

/* One leaf or sub-leaf of the CPUID table that the guest sees. */
struct tdxe_cpuid {
	u32 fn, idx;
	bool sub;		/* has meaningful sub-leaves */
	bool ve;		/* #VE for the guest all the same */
	u32 r[4];		/* eax, ebx, ecx, edx */
};

#define TDXE_NR_CPUID	96

/* What happened in a TD's life, for the witness and the tests. */
struct tdxe_counts {
	atomic64_t added;	/* 4 KiB pages by INIT_MEM_REGION */
	atomic64_t extended;	/* of those, measured */
	atomic64_t augmented;	/* mapped after FINALIZE, pending */
	atomic64_t accepted;	/* by TDG.MEM.PAGE.ACCEPT */
	atomic64_t busy;	/* PAGE.ACCEPT that met another vCPU's */
	atomic64_t converted;	/* private pages taken away by a conversion to shared */
	atomic64_t removed;	/* private pages taken away, teardown included */
	atomic64_t map_gpa;	/* MapGPA exits to user space */
	atomic64_t ve;		/* virtualization exceptions */
};

/* Lives right behind struct kvm_svm in the VM allocation (zeroed). */
struct tdxe_vm {
	enum tdxe_td_state state;
	int key_id;			/* 0: none */
	u64 attributes, xfam;
	u8 mrconfigid[48], mrowner[48], mrownerconfig[48];
	struct sha384_ctx mrtd_ctx;
	u8 mrtd[48];
	u8 rtmr[4][48];
	struct mutex mr_lock;		/* rtmr */
	u64 tsc_offset;
	u64 td_ctls, notify_enables;
	u64 *sept_root;			/* PML4 page; entries 0..255 are used */
	atomic_t nr_vcpus;		/* INIT_VCPU calls = next VCPU_INDEX */
	struct xarray vcpus;		/* vcpu_id -> struct tdxe_vcpu */
	int nr_cpuid;
	struct tdxe_cpuid cpuid[TDXE_NR_CPUID];
	u64 tried_pages;		/* by INIT_MEM_REGION, for fault injection */
	struct page *add_src;		/* source page of the ADD in progress */
	struct tdxe_counts counts;
	const char *end;		/* why the TD died; NULL: it did not */
};

/* What TDG.VP.VEINFO.GET answers. */
struct tdxe_ve {
	bool valid;
	u32 reason, len, info;
	u64 qual, gla, gpa;
};

#define TDXE_LOG	32

struct tdxe_exit_log {
	u32 code;
	u64 rip, info1, info2, rax, rcx, rdx, r11, cr3;
	u32 intinfo;
};

struct tdxe_vcpu {
	struct kvm_vcpu *vcpu;
	u32 log_next;
	struct tdxe_exit_log log[TDXE_LOG];
	bool inited;
	bool no_pae;			/* CR4.PAE as the guest sees it is clear */
	u32 index;
	struct tdxe_ve ve;
	u8 cpuidve;			/* bit 0 supervisor, bit 1 user */
	bool in_hlt, hlt_blocked;	/* TDVMCALL HLT in progress, its R12 */
	bool in_vmc_msr;		/* TDVMCALL RDMSR or WRMSR in progress */
	u64 map_next, map_end;		/* MapGPA in progress */
	u64 saved[6];			/* registers hidden by a KVM hypercall */
	u64 spec_ctrl, xss, debugctl, ds_area, uarch_misc;
	bool odd_state;			/* see tdxe_handle_exit() */
};

struct tdxe_kvm {
	struct kvm_svm svm;
	struct tdxe_vm td;
};

static inline struct tdxe_vm *to_td(struct kvm *kvm)
{
	return &container_of(to_kvm_svm(kvm), struct tdxe_kvm, svm)->td;
}

static inline bool is_td(struct kvm *kvm)
{
	return kvm->arch.vm_type == KVM_X86_TDX_VM;
}

static inline bool is_td_vcpu(struct kvm_vcpu *vcpu)
{
	return is_td(vcpu->kvm);
}

static inline struct tdxe_vcpu *to_tv(struct kvm_vcpu *vcpu)
{
	return xa_load(&to_td(vcpu->kvm)->vcpus, vcpu->vcpu_id);
}

#define REG(vcpu, r)	((vcpu)->arch.regs[VCPU_REGS_##r])

/* The original SVM calls, for use behind the interposer. */
extern struct kvm_x86_ops tdxe_svm;

/* params.c */
struct tdxe_params {
	bool enabled, strict_ve, accept_2m, eoi_exits, tcg_irq_exit;
	uint fms, max_vcpus, max_tds, key_ids, trace;
	uint fail_every, fail_errno, init_vm_eagain, finalize_busy;
};
extern struct tdxe_params tdxe;
int tdxe_key_alloc(struct tdxe_vm *td);
void tdxe_key_free(struct tdxe_vm *td);
int tdxe_key_ids_used(void);
bool tdxe_take_one(uint *count);

/* ops.c */
void tdxe_hardware_setup(struct kvm_x86_ops *ops);

/* lifecycle.c */
int tdxe_vm_init(struct kvm *kvm);
void tdxe_vm_destroy(struct kvm *kvm);
int tdxe_vcpu_create(struct kvm_vcpu *vcpu);
void tdxe_vcpu_free(struct kvm_vcpu *vcpu);
void tdxe_vcpu_reset(struct kvm_vcpu *vcpu, bool init_event);
void tdxe_vcpu_load(struct kvm_vcpu *vcpu, int cpu);
void tdxe_vcpu_put(struct kvm_vcpu *vcpu);

/* launch.c */
int tdxe_vm_ioctl(struct kvm *kvm, void __user *argp);
int tdxe_vcpu_unlocked_ioctl(struct kvm_vcpu *vcpu, void __user *argp);
int tdxe_vcpu_ioctl(struct kvm_vcpu *vcpu, void __user *argp);

/* populate.c */
int tdxe_init_mem_region(struct kvm_vcpu *vcpu, struct kvm_tdx_cmd *cmd);

/* vcpu_start.c */
int tdxe_init_vcpu(struct kvm_vcpu *vcpu, struct kvm_tdx_cmd *cmd);

/* sept.c */
enum tdxe_sept_state { SEPT_FREE, SEPT_PENDING, SEPT_BUSY, SEPT_MAPPED };

int tdxe_sept_init(struct kvm *kvm);
void tdxe_sept_destroy(struct kvm *kvm);
int tdxe_set_external_spte(struct kvm *kvm, gfn_t gfn, u64 old_spte,
			   u64 new_spte, enum pg_level level);
void tdxe_free_external_spt(struct kvm *kvm, struct kvm_mmu_page *sp);
u64 tdxe_sept_raw(struct kvm *kvm, gfn_t gfn);
void tdxe_sept_sync_root(struct kvm *kvm, hpa_t root);
enum tdxe_sept_state tdxe_sept_state(struct kvm *kvm, gfn_t gfn);
enum tdxe_sept_state tdxe_sept_accept(struct kvm *kvm, gfn_t gfn);
int tdxe_gpa_rw(struct kvm *kvm, gpa_t gpa, void *buf, size_t len, bool write);
int tdxe_private_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error_code);

/* cpuid.c */
int tdxe_cpuid_caps(struct kvm_cpuid_entry2 *out, int max);
int tdxe_cpuid_read_config(struct kvm_cpuid2 *user, u32 (**conf)[4]);
int tdxe_cpuid_init(struct kvm *kvm, const u32 conf[][4], u64 *hw_error);
bool tdxe_cpuid_lookup(struct kvm_vcpu *vcpu, u32 fn, u32 idx, u32 *r);
int tdxe_cpuid_copy(struct kvm_vcpu *vcpu, struct kvm_cpuid2 __user *to);
u64 tdxe_supported_xfam(void);

/* insn.c */
#define INSN_MAX	15

struct tdxe_insn {
	u8 b[INSN_MAX + 3];	/* so that what follows the prefixes can be looked at */
	int n, op;		/* bytes read, offset of the opcode */
	u8 rex, len;		/* len 0: not one of the known instructions */
	bool rep, imm;
};

int tdxe_fetch(struct kvm_vcpu *vcpu, u8 *buf, int max);
void tdxe_decode(struct kvm_vcpu *vcpu, struct tdxe_insn *in);
void tdxe_advance(struct kvm_vcpu *vcpu, int len);
int tdxe_skip_insn(struct kvm_vcpu *vcpu);

/* exit.c */
int tdxe_handle_exit(struct kvm_vcpu *vcpu, fastpath_t fastpath);
void tdxe_td_dies(struct kvm_vcpu *vcpu, const char *why);

/* msr.c, cr.c: what an access does */
enum tdxe_rule {
	RULE_VE,	/* #VE */
	RULE_GP,	/* #GP(0) */
	RULE_NATIVE,	/* kvm-amd's usual handler, or done */
	RULE_ZERO,	/* reads as 0 */
	RULE_HERE,	/* emulated in msr.c */
	RULE_CPUID,	/* #VE if CPUID has the feature, else #GP */
	RULE_TOPOLOGY,	/* #VE, or read-only with TD_CTLS.ENUM_TOPOLOGY */
};

bool tdxe_has_emulated_msr(u32 index);
bool tdxe_is_read_only_msr(u32 index);
int tdxe_handle_msr(struct kvm_vcpu *vcpu, bool write);
int tdxe_handle_cr(struct kvm_vcpu *vcpu);

/* ve.c; exit reasons as VMX numbers them */
enum tdxe_reason {
	R_CPUID = 10, R_HLT = 12, R_INVD = 13, R_VMCALL = 18, R_CR = 28, R_IO = 30,
	R_RDMSR = 31, R_WRMSR = 32, R_MWAIT = 36, R_MONITOR = 39, R_EPT = 48,
	R_WBINVD = 54,
};

void tdxe_inject_ve(struct kvm_vcpu *vcpu, u32 reason, u64 qual, u32 len);
int tdxe_ve_insn(struct kvm_vcpu *vcpu, u32 reason);
int tdxe_ve_io(struct kvm_vcpu *vcpu);
void tdxe_ve_ept(struct kvm_vcpu *vcpu, u64 ec, gpa_t gpa);
u64 tdxe_veinfo_get(struct kvm_vcpu *vcpu);

/* tdcall.c */
int tdxe_tdcall(struct kvm_vcpu *vcpu);

/* metadata.c */
u64 tdxe_vm_rd(struct kvm_vcpu *vcpu);
u64 tdxe_vm_wr(struct kvm_vcpu *vcpu);
u64 tdxe_sys_rd(struct kvm_vcpu *vcpu);

/* measure.c */
void tdxe_mr_page_add(struct tdxe_vm *td, gpa_t gpa);
void tdxe_mr_extend(struct tdxe_vm *td, gpa_t gpa, const void *page);
u64 tdxe_rtmr_extend(struct kvm_vcpu *vcpu);
u64 tdxe_mr_report(struct kvm_vcpu *vcpu);
u64 tdxe_mr_verify(struct kvm_vcpu *vcpu);

/* tdvmcall.c, userexit.c; status in R10 (GHCI 1.5, table "TDCALL[TDG.VP.VMCALL] status codes") */
#define VMC_OK		0ULL
#define VMC_RETRY	1ULL
#define VMC_INVALID	0x8000000000000000ULL
#define VMC_ALIGN	0x8000000000000002ULL
#define VMC_UNSUPP	0x8000000000000003ULL

int tdxe_vmcall(struct kvm_vcpu *vcpu);
int tdxe_vmc_ret(struct kvm_vcpu *vcpu, u64 status);
int tdxe_vmc_map_gpa(struct kvm_vcpu *vcpu);
int tdxe_vmc_fatal(struct kvm_vcpu *vcpu);
int tdxe_vmc_get_info(struct kvm_vcpu *vcpu);
int tdxe_vmc_get_quote(struct kvm_vcpu *vcpu);
int tdxe_vmc_event_notify(struct kvm_vcpu *vcpu);

/* witness.c */
void tdxe_witness_setup(void);
void tdxe_witness_teardown(void);
void tdxe_witness_td(struct kvm *kvm);

/* dump.c */
void tdxe_record_exit(struct kvm_vcpu *vcpu);
void tdxe_dump(struct kvm_vcpu *vcpu);
void tdxe_dump_walk(struct kvm_vcpu *vcpu, u64 va);

#endif

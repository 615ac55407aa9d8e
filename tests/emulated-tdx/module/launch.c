// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_MEMORY_ENCRYPT_OP of a TD: the sub-commands, the state that each needs, and
 * the state that it leads to.
 *
 * KVM spreads these rules over tdx_vm_ioctl(), tdx_vcpu_unlocked_ioctl() and
 * tdx_vcpu_ioctl(); here they are one table. A command in a wrong state, on the
 * wrong file descriptor or of an unknown id is EINVAL.
 */
#include "tdxe.h"

#define IN(state)	BIT(state)
#define ANY		(IN(TD_NEW) | IN(TD_INITIALIZED) | IN(TD_RUNNABLE))

enum scope {
	ON_VM,			/* VM descriptor, with all locks; hw_error is written back */
	ON_VM_UNLOCKED,		/* VM descriptor, no lock; nothing is written back */
	ON_VCPU_ALL_LOCKS,	/* vCPU descriptor, with all locks of the VM */
	ON_VCPU,		/* vCPU descriptor, with that vCPU's lock */
};

static int capabilities(struct kvm *kvm, struct kvm_tdx_cmd *cmd);
static int init_vm(struct kvm *kvm, struct kvm_tdx_cmd *cmd);
static int finalize(struct kvm *kvm, struct kvm_tdx_cmd *cmd);
static int get_cpuid(struct kvm_vcpu *vcpu, struct kvm_tdx_cmd *cmd);

static const struct command {
	u32 id;
	enum scope scope;
	unsigned int states;	/* those in which it is legal */
	enum tdxe_td_state then;	/* after success, for commands on the VM */
	int (*on_vm)(struct kvm *kvm, struct kvm_tdx_cmd *cmd);
	int (*on_vcpu)(struct kvm_vcpu *vcpu, struct kvm_tdx_cmd *cmd);
} commands[] = {
	{ KVM_TDX_CAPABILITIES, ON_VM_UNLOCKED, ANY, .on_vm = capabilities },
	{ KVM_TDX_INIT_VM, ON_VM, IN(TD_NEW), TD_INITIALIZED, .on_vm = init_vm },
	{ KVM_TDX_FINALIZE_VM, ON_VM, IN(TD_INITIALIZED), TD_RUNNABLE, .on_vm = finalize },
	{ KVM_TDX_INIT_VCPU, ON_VCPU_ALL_LOCKS, IN(TD_INITIALIZED), .on_vcpu = tdxe_init_vcpu },
	{ KVM_TDX_INIT_MEM_REGION, ON_VCPU_ALL_LOCKS, IN(TD_INITIALIZED),
	  .on_vcpu = tdxe_init_mem_region },
	{ KVM_TDX_GET_CPUID, ON_VCPU, IN(TD_INITIALIZED), .on_vcpu = get_cpuid },
};

static const struct command *find_command(u32 id, enum scope scope)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(commands); i++)
		if (commands[i].id == id && commands[i].scope == scope)
			return &commands[i];
	return NULL;
}

/* KVM: tdx_get_cmd() */
static int get_cmd(void __user *argp, struct kvm_tdx_cmd *cmd)
{
	if (copy_from_user(cmd, argp, sizeof(*cmd)))
		return -EFAULT;
	return cmd->hw_error ? -EINVAL : 0;
}

/* ---- locks: kvm->lock, every vCPU's mutex, slots_lock, as tdx_acquire_vm_state_locks() ---- */

static int lock_td(struct kvm *kvm)
{
	int r;

	mutex_lock(&kvm->lock);
	r = kvm->created_vcpus != atomic_read(&kvm->online_vcpus) ? -EBUSY :
								    kvm_lock_all_vcpus(kvm);
	if (r) {
		mutex_unlock(&kvm->lock);
		return r;
	}
	mutex_lock(&kvm->slots_lock);	/* inside vcpu->mutex */
	return 0;
}

static void unlock_td(struct kvm *kvm)
{
	mutex_unlock(&kvm->slots_lock);
	kvm_unlock_all_vcpus(kvm);
	mutex_unlock(&kvm->lock);
}

/* ---- dispatch ----------------------------------------------------------------------- */

int tdxe_vm_ioctl(struct kvm *kvm, void __user *argp)
{
	const struct command *c;
	struct kvm_tdx_cmd cmd;
	int r;

	if (!is_td(kvm))
		return tdxe_svm.mem_enc_ioctl ? tdxe_svm.mem_enc_ioctl(kvm, argp) : -ENOTTY;
	r = get_cmd(argp, &cmd);
	if (r)
		return r;
	c = find_command(cmd.id, ON_VM_UNLOCKED);
	if (c)
		return c->on_vm(kvm, &cmd);
	r = lock_td(kvm);
	if (r)
		return r;
	c = find_command(cmd.id, ON_VM);
	if (!c) {
		unlock_td(kvm);
		return -EINVAL;
	}
	r = c->states & IN(to_td(kvm)->state) ? c->on_vm(kvm, &cmd) : -EINVAL;
	if (!r) {
		to_td(kvm)->state = c->then;
		if (c->then == TD_RUNNABLE) {
			smp_wmb();	/* the state is set before pre_fault_allowed */
			kvm->arch.pre_fault_allowed = true;
		}
	}
	if (copy_to_user(argp, &cmd, sizeof(cmd)))
		r = -EFAULT;
	unlock_td(kvm);
	return r;
}

int tdxe_vcpu_unlocked_ioctl(struct kvm_vcpu *vcpu, void __user *argp)
{
	struct tdxe_vm *td = to_td(vcpu->kvm);
	const struct command *c;
	struct kvm_tdx_cmd cmd;
	int r;

	if (!is_td_vcpu(vcpu))
		return -ENOIOCTLCMD;
	r = get_cmd(argp, &cmd);
	if (r)
		return r;
	r = lock_td(vcpu->kvm);
	if (r)
		return r;
	c = find_command(cmd.id, ON_VCPU_ALL_LOCKS);
	if (td->state != TD_INITIALIZED) {
		r = -EINVAL;	/* whatever the command */
	} else if (!c) {
		r = -ENOIOCTLCMD;	/* KVM goes on to tdxe_vcpu_ioctl() */
	} else {
		vcpu_load(vcpu);
		r = c->on_vcpu(vcpu, &cmd);
		vcpu_put(vcpu);
	}
	unlock_td(vcpu->kvm);
	return r;
}

int tdxe_vcpu_ioctl(struct kvm_vcpu *vcpu, void __user *argp)
{
	const struct command *c;
	struct kvm_tdx_cmd cmd;
	int r;

	if (!is_td_vcpu(vcpu))
		return -ENOTTY;
	r = get_cmd(argp, &cmd);
	if (r)
		return r;
	c = find_command(cmd.id, ON_VCPU);
	if (!c || !(c->states & IN(to_td(vcpu->kvm)->state)))
		return -EINVAL;
	return c->on_vcpu(vcpu, &cmd);
}

/* ---- the commands ---------------------------------------------------------------------- */

/* KVM: tdx_get_capabilities() */
static int capabilities(struct kvm *kvm, struct kvm_tdx_cmd *cmd)
{
	struct kvm_tdx_capabilities __user *u = u64_to_user_ptr(cmd->data);
	struct kvm_cpuid_entry2 caps[32];
	struct kvm_tdx_capabilities *c;
	u32 nent;
	int n, r = 0;

	if (cmd->flags)
		return -EINVAL;
	if (get_user(nent, &u->cpuid.nent))
		return -EFAULT;
	n = tdxe_cpuid_caps(caps, ARRAY_SIZE(caps));
	if (nent < n)
		return -E2BIG;	/* nent is not updated */
	c = kzalloc(sizeof(*c), GFP_KERNEL);
	if (!c)
		return -ENOMEM;
	c->supported_attrs = TDXE_ATTR_SEPT_VE_DIS;
	c->supported_xfam = tdxe_supported_xfam();
	c->user_tdvmcallinfo_1_r11 = BIT(1);	/* SetupEventNotifyInterrupt */
	c->cpuid.nent = n;
	if (copy_to_user(u, c, sizeof(*c)) ||
	    copy_to_user(u->cpuid.entries, caps, n * sizeof(caps[0])))
		r = -EFAULT;
	kfree(c);
	return r;
}

/* What KVM checks itself, in its order (tdx_td_init(), setup_tdparams()). */
static int check_init_vm(struct kvm *kvm, struct kvm_tdx_init_vm *iv, u32 nent)
{
	if (memchr_inv(iv->reserved, 0, sizeof(iv->reserved)) || iv->cpuid.padding ||
	    iv->cpuid.nent != nent)
		return -EINVAL;
	if (kvm->created_vcpus)
		return -EBUSY;
	if ((iv->attributes & ~TDXE_ATTR_SEPT_VE_DIS) || (iv->xfam & ~tdxe_supported_xfam()))
		return -EINVAL;
	return 0;
}

/* TDH.MNG.CREATE to TDH.MNG.INIT (KVM: __tdx_td_init()). */
static int build_td(struct kvm *kvm, const u32 conf[][4], u64 *hw_error)
{
	struct tdxe_vm *td = to_td(kvm);
	u32 mhz25 = kvm->arch.default_tsc_khz / 25000;
	int r;

	r = tdxe_key_alloc(td);
	if (r)
		return r;
	if (tdxe_take_one(&tdxe.init_vm_eagain)) {	/* TDX_RND_NO_ENTROPY */
		r = -EAGAIN;
		goto no_key;
	}
	r = tdxe_cpuid_init(kvm, conf, hw_error);
	if (r)
		goto no_key;
	if (mhz25 < 4 || mhz25 > 400) {
		*hw_error = TDX_E_OPERAND_INVALID | OP_TSC_FREQUENCY;
		r = -EINVAL;
		goto no_key;
	}
	r = tdxe_sept_init(kvm);
	if (!r)
		return 0;
no_key:
	tdxe_key_free(td);
	return r;
}

static int init_vm(struct kvm *kvm, struct kvm_tdx_cmd *cmd)
{
	struct kvm_tdx_init_vm __user *u = u64_to_user_ptr(cmd->data);
	struct tdxe_vm *td = to_td(kvm);
	struct kvm_tdx_init_vm *iv;
	u32 (*conf)[4] = NULL;
	u32 nent;
	int r;

	if (cmd->flags)
		return -EINVAL;
	if (get_user(nent, &u->cpuid.nent))
		return -EFAULT;
	if (nent > KVM_MAX_CPUID_ENTRIES)
		return -E2BIG;
	iv = memdup_user(u, struct_size(u, cpuid.entries, nent));
	if (IS_ERR(iv))
		return PTR_ERR(iv);
	r = check_init_vm(kvm, iv, nent);
	if (!r)
		r = tdxe_cpuid_read_config(&iv->cpuid, &conf);
	if (r)
		goto out;
	td->attributes = iv->attributes;
	td->xfam = iv->xfam | XFEATURE_MASK_FPSSE;	/* fixed to 1 */
	r = build_td(kvm, conf, &cmd->hw_error);
	if (r)
		goto out;
	memcpy(td->mrconfigid, iv->mrconfigid, 48);
	memcpy(td->mrowner, iv->mrowner, 48);
	memcpy(td->mrownerconfig, iv->mrownerconfig, 48);
	sha384_init(&td->mrtd_ctx);
	td->tsc_offset = -rdtsc();
	td->td_ctls = td->attributes & TDXE_ATTR_SEPT_VE_DIS ? TDXE_CTL_PENDING_VE_DIS : 0;
	kvm->arch.gfn_direct_bits = gpa_to_gfn(TDXE_SHARED);
out:
	kfree(conf);
	kfree(iv);
	return r;
}

/* KVM: tdx_td_finalize(); flags and data are not looked at */
static int finalize(struct kvm *kvm, struct kvm_tdx_cmd *cmd)
{
	struct tdxe_vm *td = to_td(kvm);

	if (!atomic_read(&td->nr_vcpus)) {
		cmd->hw_error = TDX_E_NO_VCPUS;
		td->end = "finalize without a vCPU";
		kvm_vm_bugged(kvm);
		return -EIO;
	}
	if (tdxe_take_one(&tdxe.finalize_busy)) {
		cmd->hw_error = TDX_E_OPERAND_BUSY | OP_RCX;
		return -EBUSY;
	}
	sha384_final(&td->mrtd_ctx, td->mrtd);
	pr_info("finalized, %d vCPUs, MRTD %*phN\n", atomic_read(&td->nr_vcpus), 48, td->mrtd);
	return 0;
}

/* KVM: tdx_vcpu_get_cpuid(); flags are not looked at */
static int get_cpuid(struct kvm_vcpu *vcpu, struct kvm_tdx_cmd *cmd)
{
	return tdxe_cpuid_copy(vcpu, u64_to_user_ptr(cmd->data));
}

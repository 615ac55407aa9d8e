/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between the kernel series that the fixture builds against.
 *
 * 7.2: "may this vCPU run" is vcpu_pre_run(), which returns 1 or an errno.
 * 7.3: it is vcpu_needs_initialization(), a bool that KVM turns into EINVAL.
 */
#ifndef __TDXE_COMPAT_H
#define __TDXE_COMPAT_H

#include <linux/version.h>

#define TDXE_HAS_PRE_RUN	(LINUX_VERSION_CODE < KERNEL_VERSION(7, 3, 0))

#endif

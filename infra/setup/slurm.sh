#!/usr/bin/env bash
# A Slurm to test against: Debian's packages, as root. They start nothing here; the tests run daemons of their own.
set -euo pipefail
for name in slurmctld slurmd munged sbatch; do
  command -v "$name" >/dev/null || missing=1
done
[ -z "${missing:-}" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
  exit 0
fi
echo "slurm: slurmctld, slurmd and munge are not installed. Next: install them with your package manager" >&2
exit 10

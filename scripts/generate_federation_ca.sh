#!/usr/bin/env bash
# Make a federation's root CA and sign its members' CAs, then let openssl check every chain.
#   scripts/generate_federation_ca.sh [--out DIR] DOMAIN MEMBER…
#   scripts/generate_federation_ca.sh --out ca collective.local alice bob.collective.local
# A member is a name under the federation's domain, or a whole domain. A root that is there already is used again.
set -euo pipefail

usage() {
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

collective=${COLLECTIVE:-$(cd "$(dirname "$0")/.." && pwd)/bin/collective}
out=.
if [ "${1:-}" = --out ]; then
    [ $# -ge 2 ] || usage
    out=$2
    shift 2
fi
case "${1:-}" in "" | -*) usage ;; esac
[ $# -ge 2 ] || usage
domain=$1
shift

if [ -e "$out/root-ca.crt" ]; then
    echo "using the root in $out"
else
    "$collective" federation ca init --domain "$domain" --out "$out"
fi
for member in "$@"; do
    case "$member" in *.*) ;; *) member="$member.$domain" ;; esac
    "$collective" federation ca sign-member --member "$member" --out "$out"
    label=${member%%.*}
    openssl verify -CAfile "$out/root-ca.crt" -untrusted "$out/$label-ca.crt" "$out/$label-cert.crt"
done

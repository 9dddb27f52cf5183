"""Who comes in and who goes: founding a federation, joining one by files carried by hand, leaving on purpose.

*Founding* makes a root, a first member and its feeds in one home. A *join request* is made in the new home and its
keys never leave it; a *bundle* answers it with the root certificate, the signed member CA, the root feed up to the
admission and where the issuer can be reached. Nothing here opens a socket.
"""

from collective.admission.byhand import AdmissionDesk, admission_rows, join_with_bundle, make_join_request
from collective.admission.found import found_federation
from collective.admission.household import Household, furnish, open_household
from collective.admission.leave import Goodbye, LeaveDesk, leave_rows

__all__ = [
    "AdmissionDesk",
    "Goodbye",
    "Household",
    "LeaveDesk",
    "admission_rows",
    "found_federation",
    "furnish",
    "join_with_bundle",
    "leave_rows",
    "make_join_request",
    "open_household",
]

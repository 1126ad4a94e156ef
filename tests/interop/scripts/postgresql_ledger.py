"""Reserve what fits into a budget of one OPG, as one of several processes over one PostgreSQL ledger."""

import json
import sys
import time

from opengradient_x402.errors import BudgetExceeded
from opengradient_x402.ledger.authorizations import Authorization, Budget, SignedTerms
from opengradient_x402.ledger.ledger import Ledger

task = json.load(sys.stdin)
ledger = Ledger(task["url"])
won = 0
for number in range(task["first"], task["first"] + 30):
    terms = SignedTerms(**task["entry"]["signed"][0] | {"signed_at": int(time.time())})
    entry = Authorization(**task["entry"] | {"signed": (terms,), "id": f"auth_{number}", "call_id": f"call_{number}"})
    try:
        ledger.authorize(entry, budget=Budget(limit_atomic=10**18)).result()
        won += 1
    except BudgetExceeded:
        pass
entries = len(ledger.authorizations().result())
ledger.close()
print(json.dumps({"won": won, "entries": entries}))

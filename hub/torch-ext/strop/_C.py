"""The compiled module under the name that the package's files have for it; here it is called as its operators are."""

import sys

from . import _ops

sys.modules[__name__] = getattr(_ops, _ops.add_op_namespace_prefix("").removesuffix("::"))

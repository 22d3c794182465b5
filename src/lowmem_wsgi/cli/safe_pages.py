"""Which pages the commands ask for by themselves, without being told to."""

from __future__ import annotations

import re

# A page whose name says that it changes something is not asked, even by GET.
CHANGES = re.compile(
    r"log-?out|sign-?out|delete|remove|destroy|reset|cancel|purge|flush|clear|unsubscribe|shutdown|"
    r"restart|send|cleanup|accept|approve|vote|charge|refund|cron|trigger|sync|import|migrate|"
    r"rebuild|publish|archive|revoke|wipe|confirm|activate|mail|"
    # Short words, which are also parts of others: only at the beginning of one.
    r"(?<![a-z])(?:re|un|pre)?(?:like|buy|order|pay|run|start|stop|drop)",
    re.IGNORECASE,
)
MOST_PAGES = 30

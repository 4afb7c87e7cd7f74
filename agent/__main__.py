"""`python -m agent` is `uptime-agent`."""

from agent.cli import main

raise SystemExit(main())

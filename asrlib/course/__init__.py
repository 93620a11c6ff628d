"""The notebooks as data: a chapter's run, records, findings, claims, runner, site."""

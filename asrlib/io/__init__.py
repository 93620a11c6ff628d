"""Files, downloads, the Hub, the tested environments, progress: what all else stands on."""

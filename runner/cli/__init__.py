"""From the words of a command to a checked run config; the only room, with the plugin, that knows Hydra."""

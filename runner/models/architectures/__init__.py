"""The shapes of the models that ``conf/model`` names, as in their ``config.json``, and a page of them."""

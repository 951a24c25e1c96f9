"""Does a fine-tune walk the persona paths that a model already has, or does it cut new ones?"""
